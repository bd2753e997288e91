"""L_hidden: early distillation of intermediate feature maps (DearKD, arXiv 2204.12997, eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def hidden_loss(
    student_maps: Sequence[Tensor],
    teacher_maps: Sequence[Tensor],
    *,
    target_norm: Literal["none", "channel_std"] = "none",
) -> Tensor:
    """Return the mean squared error between aligned student maps and teacher maps, DearKD eq. 4.

    Mean over all elements of a pair, then over pairs; eq. 4 shows one pair and no reduction.

    Args:
        student_maps: outputs of the aligners, (B, C, H, W) each.
        teacher_maps: maps of the teacher in the same order and of the same shapes.
        target_norm: ``channel_std`` divides the teacher's maps by the standard deviation of their channels over batch
            and positions; it keeps their sign, which a ReLU aligner needs.

    Raises:
        ValueError: no pairs, or a pair of different shapes.

    """
    shapes = [tuple(a.shape) for a in student_maps], [tuple(b.shape) for b in teacher_maps]
    if not student_maps or shapes[0] != shapes[1]:
        raise ValueError(f"hidden_loss: student maps of shapes {shapes[0]} against teacher maps of {shapes[1]}")
    if target_norm == "channel_std":
        teacher_maps = [_over_channel_std(target) for target in teacher_maps]
    # Under autocast, mse_loss runs in float32.
    return torch.stack([F.mse_loss(a, b) for a, b in zip(student_maps, teacher_maps, strict=True)]).mean()


def _over_channel_std(target: Tensor) -> Tensor:
    variance = target.var(dim=(0, 2, 3), keepdim=True, correction=0)
    # The constant keeps channels finite that never fire.
    return target * (variance + 1e-5).rsqrt()
