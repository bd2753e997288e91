"""The terms of eq. 8 (DearKD, arXiv 2204.12997), one file each: what makes an image of a teacher's class."""

from __future__ import annotations

from dearkd.generation.losses.bn_statistics import bn_statistics_loss, channel_statistics
from dearkd.generation.losses.competition import competition_loss
from dearkd.generation.losses.intra_divergence import IntraDivergence, intra_divergence
from dearkd.generation.losses.l2_prior import l2_prior
from dearkd.generation.losses.total_variation import total_variation

__all__ = [
    "IntraDivergence",
    "bn_statistics_loss",
    "channel_statistics",
    "competition_loss",
    "intra_divergence",
    "l2_prior",
    "total_variation",
]
