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
