"""From the error of each pair and axis to a scalar."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Reduction = Literal["mean", "sum", "mean_axes"]


def reduce_pairs(errors: Tensor, reduction: Reduction) -> Tensor:
    """Reduce (B, m, 2) to a scalar; none of the three depends on m in expectation.

    - ``sum``: DRLoc eq. 2 to the letter, sum over images, mean over pairs, sum over the two axes.
    - ``mean``: the same with the mean over images, so that lambda does not depend on the batch.
    - ``mean_axes``: mean over everything, the l1 mode of the released code; half of ``mean``.
    """
    if errors.ndim != 3 or errors.shape[-1] != 2:
        raise ValueError(f"reduce_pairs: errors of shape {tuple(errors.shape)}, expected (B, m, 2)")
    if reduction == "mean_axes":
        return errors.mean()
    images = errors.sum(dim=-1).mean(dim=1)
    return images.sum() if reduction == "sum" else images.mean()
