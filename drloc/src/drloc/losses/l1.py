"""L_drloc: regression of the relative position of two tokens (DRLoc, arXiv 2106.03746, eq. 2)."""

from __future__ import annotations

from torch import Tensor

from drloc.losses.reduction import Reduction, reduce_pairs


def l1_loss(predicted: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Return ``|t_u - d_u| + |t_v - d_v|``, DRLoc eq. 2; with signed targets this is L*_drloc of the draft.

    The released code has targets in cells, which the paper divides by k, and averages over the two axes, which the
    paper adds: on the same pairs and with predictions in the same unit, the paper's value is 2/k of the code's.

    Args:
        predicted: (B, m, 2).
        targets: (B, m, 2).
        reduction: see `reduce_pairs`.

    Raises:
        ValueError: the shapes differ.

    """
    if predicted.shape != targets.shape:
        raise ValueError(f"l1_loss: predictions {tuple(predicted.shape)} of targets {tuple(targets.shape)}")
    return reduce_pairs((predicted - targets).abs(), reduction)
