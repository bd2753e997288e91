"""L^reg_drloc: a distribution over offsets by its mean and variance (draft of DRLoc; the code's ``cbr`` mode)."""

from __future__ import annotations

import torch
from torch import Tensor

from drloc.losses.reduction import Reduction, reduce_pairs


def reg_loss(
    logits: tuple[Tensor, Tensor], targets: Tensor, *, alpha: float = 0.002, reduction: Reduction = "mean"
) -> Tensor:
    """Return ``(c - mu)^2 / sigma^2 + alpha log(sigma)``, added over rows and columns.

    mu and sigma^2 are mean and variance of the class under a softmax (after Dwibedi et al., temporal cycle-consistency,
    2019). The draft gives alpha no value; the released code has 0.001 log(sigma^2), which is alpha = 0.002, and adds
    1e-8 to the variance.

    Args:
        logits: (B, m, C) for rows, (B, m, C') for columns.
        targets: (B, m, 2) int64, class ids from 0.
        alpha: weight of log sigma.
        reduction: see `reduce_pairs`.

    """
    errors = []
    for index, axis in enumerate(logits):
        probabilities = axis.softmax(dim=-1)
        classes = torch.arange(axis.shape[-1], device=axis.device, dtype=axis.dtype)
        mean = (probabilities * classes).sum(dim=-1, keepdim=True)
        log_variance = torch.log((probabilities * (classes - mean).square()).sum(dim=-1) + 1e-8)
        squared = (mean[..., 0] - targets[..., index]).square()
        errors.append(squared * torch.exp(-log_variance) + alpha / 2 * log_variance)
    return reduce_pairs(torch.stack(errors, dim=-1), reduction)
