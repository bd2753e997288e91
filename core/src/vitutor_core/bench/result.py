"""What a benchmark hands back: ratios with their spread, figures, and what was left out and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.errors import VitutorError


@dataclass(frozen=True)
class Row:
    """The time of ``first`` over that of ``second``, as median and quartiles of ``pairs`` pairs.

    ``equal`` says in which sense both were seen to give the same, where they claim to; ``goal`` is what the ratio
    should be on a GPU.
    """

    first: str
    second: str
    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    pairs: int
    equal: str | None = None
    goal: str | None = None


@dataclass
class Result:
    """Everything that one part of the benchmark found."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, first: str, second: str, times: tuple[list[float], list[float]], **said: str | None) -> Row:
        """Add the row of two functions that were timed in turn."""
        self.rows.append(Row(first, second, **ratio(*times), **said))  # type: ignore[arg-type]
        return self.rows[-1]

    def race(
        self,
        first: tuple[str, Callable[[], Any]],
        second: tuple[str, Callable[[], Any]],
        *,
        seconds: float,
        device: torch.device,
        **said: str | None,
    ) -> Row:
        """Time two named functions in turn and add their row."""
        times = interleave(first[1], second[1], seconds=seconds, warm_up=1, device=device)
        return self.add(first[0], second[0], times, **said)


def record(results: Mapping[str, Result], **facts: Any) -> dict[str, Any]:
    """Return what is written: all parts, with the ``facts``."""
    parts = {name: asdict(result) for name, result in results.items()}
    return {"benchmark": "vitutor bench", **facts, "parts": parts}


def check_losses(
    who: str, found: Sequence[float], expected: Sequence[float], device: torch.device, *, rtol: float | None = None
) -> str:
    """Return in which sense losses of two ways that claim to compute the same are equal; raises `VitutorError`.

    Bit for bit, or within ``rtol``, on a GPU 1e-2.
    """
    if rtol is None and device.type == "cuda":
        rtol = 1e-2  # bf16, and kernels that add in any order
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not math.isclose(one, other, rel_tol=rtol or 0.0):
            raise VitutorError(f"bench: {who}: loss {number} is {one!r} in one way and {other!r} in the other")
    return f"{len(expected)} losses, " + ("bit for bit" if rtol is None else f"within {rtol:g}")
