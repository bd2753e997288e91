"""RedNet (Li et al., arXiv 2103.06255, section 4): ResNets whose 3x3 convolutions are 7x7 involutions, for timm.

They are timm's `ResNet` of bottleneck blocks with the spatial convolutions replaced, in the stem too. Stage maps are
named ``layer1``, ``layer2``, ... Inputs must be divisible by the network's stride: 32; ``rednet26_cifar`` and
``rednet_tiny`` 8.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from vitutor_core.models.involution import Involution
from vitutor_core.models.variants import build_resnet_variant, imagenet_cfg, small_cnn_cfg

KERNEL_SIZE, STEM_KERNEL_SIZE = 7, 3


def involution_stem(in_chans: int, width: int, stride: int) -> nn.Sequential:
    """Build RedNet's stem: convolution (of the given stride), involution, convolution, each with BN and ReLU.

    The involution works on ``width`` / 2 channels; the result is (B, width, H / stride, W / stride).
    """
    half = width // 2
    stem = nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        Involution(half, STEM_KERNEL_SIZE),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
    for module in stem:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stem


def _rednet(
    *,
    layers: tuple[int, ...],
    channels: tuple[int, ...] = (64, 128, 256, 512),
    stem_width: int = 64,
    stem_stride: int = 2,
    max_pool: bool = True,
    in_chans: int = 3,
    **kwargs: Any,
) -> ResNet:
    model = ResNet(
        Bottleneck,
        layers,
        in_chans=in_chans,
        channels=channels,
        stem_type="deep",  # the one whose width is free
        stem_width=stem_width // 2,
        **kwargs,
    )
    # timm's forward passes expect conv1, bn1 and act1 one after another, with act1 the map of the stem.
    *first, model.bn1, model.act1 = involution_stem(in_chans, stem_width, stem_stride)
    model.conv1 = nn.Sequential(*first)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.conv2 = Involution(module.conv2.in_channels, KERNEL_SIZE, module.stride)
    if not max_pool:
        model.maxpool = nn.Identity()
    first_stage = stem_stride * (2 if max_pool else 1)
    for stage, info in enumerate(model.feature_info):
        info["reduction"] = stem_stride if stage == 0 else first_stage * 2 ** (stage - 1)
    for stage in range(len(layers), 4):
        # timm's forward passes name layer1 to layer4; an empty stage is what timm's own pruning leaves there.
        model.add_module(f"layer{stage + 1}", nn.Sequential())
    return model


_create = partial(build_resnet_variant, _rednet)
_CFG = {"interpolation": "bilinear", "first_conv": "conv1.0", "classifier": "fc"}

default_cfgs = generate_default_cfgs(
    {f"rednet{depth}": imagenet_cfg(pool_size=(7, 7), **_CFG) for depth in (26, 38, 50, 101, 152)}
    | {"rednet26_cifar": small_cnn_cfg(32, **_CFG), "rednet_tiny": small_cnn_cfg(16, **_CFG)}
)


def rednet26(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-26: 9,233,166 parameters. Its stages have 1, 2, 4, 1 blocks, not the 2, 2, 2, 2 of ResNet-26."""
    return _create("rednet26", pretrained, layers=(1, 2, 4, 1), **kwargs)


def rednet38(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-38: 12,386,986 parameters."""
    return _create("rednet38", pretrained, layers=(2, 3, 5, 2), **kwargs)


def rednet50(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-50: 15,540,806 parameters."""
    return _create("rednet50", pretrained, layers=(3, 4, 6, 3), **kwargs)


def rednet101(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-101: 25,652,950 parameters."""
    return _create("rednet101", pretrained, layers=(3, 4, 23, 3), **kwargs)


def rednet152(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-152: 33,984,582 parameters."""
    return _create("rednet152", pretrained, layers=(3, 8, 36, 3), **kwargs)


def rednet26_cifar(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet-26 for 32-pixel images: a stem of stride 1 and no pooling."""
    return _create("rednet26_cifar", pretrained, layers=(1, 2, 4, 1), stem_stride=1, max_pool=False, **kwargs)


def rednet_tiny(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """RedNet for 16-pixel images: a stem of stride 2, no pooling, one block in each of three stages.

    Its involutions have 16, 32 and 64 channels, on maps of 8, 4 and 2 pixels.
    """
    sizes: dict[str, Any] = {"layers": (1, 1, 1), "channels": (16, 32, 64), "stem_width": 32}
    return _create("rednet_tiny", pretrained, max_pool=False, **sizes | kwargs)


for _entry_point in (rednet26, rednet38, rednet50, rednet101, rednet152, rednet26_cifar, rednet_tiny):
    register_model(_entry_point)
