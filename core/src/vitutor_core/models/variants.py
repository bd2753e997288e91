"""What models at ImageNet's size tell timm of themselves, and how variants of its vision transformer are built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from timm.models.vision_transformer import checkpoint_filter_fn


def imagenet_cfg(**changes: Any) -> dict[str, Any]:
    """Return timm's description of a model without published weights: ImageNet, 224 pixels, and ``changes``."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **changes,
    }


def build_vit_variant(builder: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build a relative of timm's ``VisionTransformer`` as timm builds its own; ``builder`` takes ``kwargs``."""
    return build_model_with_cfg(
        builder,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


def small_cnn_cfg(side: int, **changes: Any) -> dict[str, Any]:
    """Return the same of a ResNet for ten classes and images of ``side`` pixels."""
    of_images = {"num_classes": 10, "input_size": (3, side, side), "pool_size": (4, 4), "crop_pct": 1.0}
    return imagenet_cfg(**of_images, **changes)


def build_resnet_variant(builder: Callable[..., Any], variant: str, pretrained: bool, **kwargs: Any) -> Any:
    """Build a relative of timm's ``ResNet`` whose stages have ``kwargs["layers"]`` blocks."""
    stages = tuple(range(1 + len(kwargs["layers"])))
    return build_model_with_cfg(builder, variant, pretrained, feature_cfg={"out_indices": stages}, **kwargs)
