"""Encoders that follow the one that is trained, as an average of its past weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def momentum(fraction: float, start: float) -> float:
    """Return the momentum after ``fraction`` of the updates: from ``start`` to 1 along a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * fraction))


@torch.no_grad()
def follow(average: nn.Module, trained: nn.Module, share: float) -> None:
    """Move the parameters of ``average``: ``share`` of them stays, the rest are those of ``trained``."""
    ours: list[Tensor] = list(average.parameters())
    theirs = [parameter.detach() for parameter in trained.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - share)
