"""DearKD (Chen et al., CVPR 2022, arXiv 2204.12997): early distillation from a CNN with convolutional attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.lazy import lazily

if TYPE_CHECKING:
    from dearkd.config import ObjectiveConfig
    from dearkd.distiller import Distiller

__all__ = ["Distiller", "ObjectiveConfig"]
__version__ = "0.1.0"

__getattr__ = lazily(__name__, {"Distiller": "dearkd.distiller", "ObjectiveConfig": "dearkd.config"})
