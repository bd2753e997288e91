"""L_attn: distillation of attention maps during pre-training (MAE-Lite, arXiv 2205.14443, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


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
    if not student or {len(teacher), len(head_maps)} != {len(student)}:
        raise ValueError(f"attention_loss: {len(student)}, {len(teacher)} layers and {len(head_maps)} head maps")
    terms = []
    for ours, target, head_map in zip(student, teacher, head_maps, strict=True):
        expected = (ours.shape[0], head_map.shape[0], *ours.shape[2:])
        if target.shape != expected or head_map.shape[1] != ours.shape[1]:
            shapes = f"{tuple(ours.shape)}, {tuple(target.shape)} and {tuple(head_map.shape)}"
            raise ValueError(f"attention_loss: student, teacher and head map of shapes {shapes}")
        pair = (ours, target) if quantity == "logits" else (ours.softmax(-1), target.softmax(-1))
        # Under autocast, mse_loss runs in float32.
        terms.append(F.mse_loss(torch.einsum("oh,bhij->boij", head_map, pair[0]), pair[1]))
    return torch.stack(terms).sum()
