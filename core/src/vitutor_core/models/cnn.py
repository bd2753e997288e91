"""Residual CNNs for small images, the usual teachers at 16 and 32 pixels, registered with timm.

They are timm's `ResNet` with the stem of the CIFAR experiments of He et al., "Deep Residual Learning for Image
Recognition" (arXiv 1512.03385, section 4.2): a 3x3 convolution of stride 1 and no max-pooling. Stage maps are named
``layer1``, ``layer2``, ... and have stride 1, 2, 4, ..., times ``stem_stride`` for larger images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from vitutor_core.models.variants import build_resnet_variant, small_cnn_cfg


def _small_image_resnet(
    *,
    layers: tuple[int, ...],
    channels: tuple[int, ...],
    block: type[nn.Module] = BasicBlock,
    stem_stride: int = 1,
    in_chans: int = 3,
    **kwargs: Any,
) -> ResNet:
    # timm fixes the width of its plain stem at 64; that of its deep stem is free, and both are replaced here.
    model = ResNet(
        block,
        layers,
        in_chans=in_chans,
        channels=channels,
        stem_type="deep",
        stem_width=channels[0] // 2,
        **kwargs,
    )
    stem = nn.Conv2d(in_chans, channels[0], 3, stride=stem_stride, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem
    model.maxpool = nn.Identity()
    for stage in range(len(layers), 4):
        # timm's forward passes name layer1 to layer4; an empty stage is what timm's own pruning leaves there.
        model.add_module(f"layer{stage + 1}", nn.Sequential())
    for info in model.feature_info:
        info["reduction"] = stem_stride * max(1, info["reduction"] // 4)
    return model


_create = partial(build_resnet_variant, _small_image_resnet)
_CFG = {"interpolation": "bilinear", "first_conv": "conv1", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    dict.fromkeys(("resnet10_cifar", "resnet18_cifar", "resnet34_cifar", "resnet50_cifar"), small_cnn_cfg(32, **_CFG))
    | {"resnet8_tiny": small_cnn_cfg(16, **_CFG)}
)


def resnet10_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet with one basic block per stage for 32-pixel images: 4,903,242 parameters with 10 classes."""
    return _create("resnet10_cifar", pretrained, layers=(1, 1, 1, 1), channels=(64, 128, 256, 512), **kwargs)


def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-18 for 32-pixel images: 11,173,962 parameters with 10 classes."""
    return _create("resnet18_cifar", pretrained, layers=(2, 2, 2, 2), channels=(64, 128, 256, 512), **kwargs)


def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-34 for 32-pixel images: 21,282,122 parameters with 10 classes."""
    return _create("resnet34_cifar", pretrained, layers=(3, 4, 6, 3), channels=(64, 128, 256, 512), **kwargs)


def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50 for 32-pixel images: 23,520,842 parameters with 10 classes."""
    sizes: dict[str, Any] = {"layers": (3, 4, 6, 3), "channels": (64, 128, 256, 512), "block": Bottleneck}
    return _create("resnet50_cifar", pretrained, **sizes, **kwargs)


def resnet8_tiny(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet with one block in each of three stages, of width 16, 32 and 64 unless ``channels`` says otherwise.

    It takes 3 MMACs for a 16-pixel image. Its depth counts as in the CIFAR ResNets, six convolutions in blocks, the
    stem and the classifier; the shortcuts of stages two and three are 1x1 convolutions.
    """
    sizes: dict[str, Any] = {"layers": (1, 1, 1), "channels": (16, 32, 64)}
    return _create("resnet8_tiny", pretrained, **sizes | kwargs)


for _entry_point in (resnet10_cifar, resnet18_cifar, resnet34_cifar, resnet50_cifar, resnet8_tiny):
    register_model(_entry_point)
