"""Co-advise (Ren et al., CVPR 2022, arXiv 2106.12378): two teachers of opposite inductive bias, a token for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.lazy import lazily

if TYPE_CHECKING:
    from coadvise.config import ObjectiveConfig
    from coadvise.objective import CoAdvise

__all__ = ["CoAdvise", "ObjectiveConfig"]
__version__ = "0.1.0"

__getattr__ = lazily(__name__, {"CoAdvise": "coadvise.objective", "ObjectiveConfig": "coadvise.config"})
