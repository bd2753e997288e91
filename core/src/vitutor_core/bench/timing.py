"""How everything is timed: two functions in turn, in one process, until the time is up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def interleave(
    first: Callable[[], Any],
    second: Callable[[], Any],
    *,
    rounds: int = 1000,
    seconds: float | None = None,
    warm_up: int = 3,
    device: torch.device | None = None,
) -> tuple[list[float], list[float]]:
    """Time two functions in turn, A B A B ..., and return their times in seconds.

    After ``rounds`` pairs, or ``seconds`` with at least two pairs. On a GPU each time includes the wait for its end.
    """
    times: tuple[list[float], list[float]] = ([], [])
    deadline = None if seconds is None else time.perf_counter() + seconds
    for number in range(warm_up + rounds):
        for function, own in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function()
            wait_for(device)
            if number >= warm_up:
                own.append(time.perf_counter() - started)
        if deadline is not None and len(times[0]) >= 2 and time.perf_counter() > deadline:
            break
    return times


def wait_for(device: torch.device | None) -> None:
    """Wait until a GPU has done what it was given."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Return medians in milliseconds, and of the pairwise ratios first / second the median and the quartiles."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "first_ms": statistics.median(first) * 1e3,
        "second_ms": statistics.median(second) * 1e3,
        "ratio": statistics.median(ratios),
        "low": low,
        "high": high,
        "pairs": len(ratios),
    }


class Budget:
    """Time that is left, shared out in proportion: what a part does not use goes to those behind it."""

    def __init__(self, seconds: float, shares: Mapping[str, float]) -> None:
        self._end = time.perf_counter() + seconds
        self._shares = dict(shares)

    def take(self, part: str) -> float:
        """Return the seconds of a part that begins now."""
        share = self._shares[part] / sum(self._shares.values())
        del self._shares[part]
        return max(self._end - time.perf_counter(), 0.0) * share
