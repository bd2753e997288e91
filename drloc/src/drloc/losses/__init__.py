"""The losses of DRLoc, one file per variant."""

from __future__ import annotations

from drloc.losses.ce import ce_loss
from drloc.losses.l1 import l1_loss
from drloc.losses.reduction import reduce_pairs
from drloc.losses.reg import reg_loss

__all__ = ["ce_loss", "l1_loss", "reduce_pairs", "reg_loss"]
