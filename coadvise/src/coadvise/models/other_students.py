"""The students of Table 4 that are not transformers, registered with timm; they have one output for all terms."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet

from vitutor_core.models.variants import imagenet_cfg

default_cfgs = generate_default_cfgs(
    {
        "resnet10": imagenet_cfg(pool_size=(7, 7), first_conv="conv1", classifier="fc"),
        "mixer_tiny_patch16_224": imagenet_cfg(fixed_input_size=True, first_conv="stem.proj", classifier="head"),
    }
)


def resnet10(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10: one basic block per stage, 4,957,092 parameters with 100 classes. The paper gives no block counts."""
    return build_model_with_cfg(ResNet, "resnet10", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **kwargs)


def mixer_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> MlpMixer:
    """Mixer-Ti: 12 blocks of width 192, 4,182,100 parameters with 100 classes. Patch and ratios are Mixer-S's."""
    sizes = {"patch_size": 16, "num_blocks": 12, "embed_dim": 192}
    return build_model_with_cfg(MlpMixer, "mixer_tiny_patch16_224", pretrained, **sizes | kwargs)


for _entry_point in (resnet10, mixer_tiny_patch16_224):
    register_model(_entry_point)
