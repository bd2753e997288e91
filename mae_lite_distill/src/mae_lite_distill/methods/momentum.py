"""Encoders that follow the one that is trained, as an average of its past weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitutor_core.train.method import Clock


def momentum(fraction: float, start: float) -> float:
    """Return the momentum after ``fraction`` of the updates: from ``start`` to 1 along a cosine."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * fraction))


class Following:
    """Lets averages follow what is trained once per update, however many micro-batches the update has."""

    def __init__(self, start: float) -> None:
        self._start, self._followed = start, -1

    def __call__(self, clock: Clock, *pairs: tuple[nn.Module, nn.Module]) -> None:
        """Move each average towards its trained module, unless this update has done so."""
        if clock.step != self._followed:
            self._followed = clock.step
            share = momentum(clock.fraction, self._start)
            for average, trained in pairs:
                _follow(average, trained, share)


@torch.no_grad()
def _follow(average: nn.Module, trained: nn.Module, share: float) -> None:
    """Move the parameters of ``average``: ``share`` of them stays, the rest are those of ``trained``."""
    ours: list[Tensor] = list(average.parameters())
    theirs = [parameter.detach() for parameter in trained.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - share)
