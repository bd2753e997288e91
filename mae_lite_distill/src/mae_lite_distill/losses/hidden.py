"""L_hidden: distillation of hidden states in pre-training, an ablation beside eq. 3 (TinyBERT, arXiv 1909.10351)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_lite_distill.losses.layers import check_layers


def hidden_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], projections: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error between projected student states and teacher states, summed over layers.

    Args:
        student: states (B, l, D) of each distilled layer, class token included.
        teacher: states (B, l, D') of the same layers, of the same tokens in the same order.
        projections: W, (D', D) each, without bias.

    Raises:
        ValueError: the number of layers or the shapes do not fit.

    """
    check_layers("hidden_loss", student, teacher, projections, axis=2)
    terms = []
    for ours, target, projection in zip(student, teacher, projections, strict=True):
        # Under autocast, mse_loss runs in float32.
        terms.append(F.mse_loss(F.linear(ours, projection), target))
    return torch.stack(terms).sum()
