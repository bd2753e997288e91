"""L_attn: distillation of attention maps during pre-training (MAE-Lite, arXiv 2205.14443, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_lite_distill.losses.layers import check_layers


def attention_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    head_maps: Sequence[Tensor],
    *,
    quantity: Literal["logits", "probs"] = "logits",
) -> Tensor:
    """Return the mean squared error between mapped student attention and teacher attention, eq. 3, summed over layers.

    The equation speaks of attention maps A, and equations 1 and 2 apply the softmax to A: it is the scaled product of
    queries and keys before the softmax, class token included, as in the released code.

    Args:
        student: logits (B, h, l, l) of each distilled layer.
        teacher: logits (B, h', l, l) of the same layers, of the same tokens in the same order.
        head_maps: M, (h', h) each: the student's heads are mixed into the teacher's, by each entry of A alone.
        quantity: ``probs`` compares after the softmax over keys instead, the literal reading of "attention maps".

    Raises:
        ValueError: the number of layers or the shapes do not fit.

    """
    check_layers("attention_loss", student, teacher, head_maps, axis=1)
    terms = []
    for ours, target, head_map in zip(student, teacher, head_maps, strict=True):
        pair = (ours, target) if quantity == "logits" else (ours.softmax(-1), target.softmax(-1))
        # Under autocast, mse_loss runs in float32.
        terms.append(F.mse_loss(torch.einsum("oh,bhij->boij", head_map, pair[0]), pair[1]))
    return torch.stack(terms).sum()
