"""The heads of DRLoc, and how the grid of a backbone is found."""

from __future__ import annotations

from drloc.models.grid import pool_grid
from drloc.models.head import OffsetClassHead, OffsetHead

__all__ = ["OffsetClassHead", "OffsetHead", "pool_grid"]
