"""The losses of Co-advise, one file per term."""

from __future__ import annotations

from coadvise.losses.divergence import divergence
from coadvise.losses.label import label_loss
from coadvise.losses.total import total_loss

__all__ = ["divergence", "label_loss", "total_loss"]
