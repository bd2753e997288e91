"""Bootstrapping ViTs (Zhang et al., CVPR 2022, arXiv 2112.03552): a ViT and an agent CNN trained together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.lazy import lazily

if TYPE_CHECKING:
    from bootstrapping_vit.config import ObjectiveConfig
    from bootstrapping_vit.joint import Joint

__all__ = ["Joint", "ObjectiveConfig"]
__version__ = "0.1.0"

__getattr__ = lazily(__name__, {"Joint": "bootstrapping_vit.joint", "ObjectiveConfig": "bootstrapping_vit.config"})
