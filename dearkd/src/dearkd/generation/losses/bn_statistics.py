"""R_BN: the batch statistics of generated images against those that the teacher has stored.

DeepInversion, arXiv 1912.08795, as used by DearKD (arXiv 2204.12997) eq. 8.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def bn_statistics_loss(features: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
    """Return the term of one batch norm: ``||var - running_var||_2 + ||mean - running_mean||_2`` over channels.

    ``features`` (B, C, H, W) is the input of the batch norm. The variance is the biased one, although torch stores the
    unbiased one in ``running_var``; that is the released code's form and matters in tiny batches only.
    """
    mean, variance = channel_statistics(features)
    loss: Tensor = torch.linalg.vector_norm(variance - running_var) + torch.linalg.vector_norm(mean - running_mean)
    return loss


def channel_statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel, (C,) each, of features (B, C, H, W)."""
    mean, variance = _ChannelStatistics.apply(features)
    return mean, variance


class _ChannelStatistics(torch.autograd.Function):
    """Both moments with one backward pass over the map: d/dx = (g_mean + 2 g_var (x - mean)) / n.

    Autograd through ``var_mean`` takes four, which on a CPU costs as much as the teacher itself.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> tuple[Tensor, Tensor]:
        mean = features.mean((0, 2, 3))
        variance = (features - mean[:, None, None]).square_().mean((0, 2, 3))
        ctx.save_for_backward(features, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        features, mean = ctx.saved_tensors
        count = features.numel() // features.shape[1]
        scale = grad_variance * (2 / count)
        shift = grad_mean / count - scale * mean
        return torch.addcmul(shift[:, None, None], features, scale[:, None, None])
