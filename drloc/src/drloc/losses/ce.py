"""L^ce_drloc: the offset as a class (draft of DRLoc; the ``ce`` mode of the released code)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from drloc.losses.reduction import Reduction, reduce_pairs


def ce_loss(logits: tuple[Tensor, Tensor], targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return the cross-entropy of the row offset plus that of the column offset.

    The draft counts 2k + 1 classes of signed offsets on a k x k grid, of which 2k - 1 can occur. Those that cannot do
    no harm: the released code has 14 classes, 27 of signed offsets, for every backbone but Swin, even on 7 x 7 grids.

    Args:
        logits: (B, m, C) for rows, (B, m, C') for columns.
        targets: (B, m, 2) int64, class ids from 0.
        reduction: see `reduce_pairs`.

    """
    errors = [
        F.cross_entropy(axis.flatten(0, 1), targets[..., index].flatten(), reduction="none").view(targets.shape[:2])
        for index, axis in enumerate(logits)
    ]
    return reduce_pairs(torch.stack(errors, dim=-1), reduction)
