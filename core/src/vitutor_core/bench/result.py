"""What a benchmark hands back: ratios with their spread, figures, and what was left out and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.provenance import git_state, machine, versions


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
    """Return what is written: all parts, with machine, versions and commit."""
    parts = {name: asdict(result) for name, result in results.items()}
    return {"benchmark": "vitutor bench", **facts, "parts": parts, **provenance()}


def provenance() -> dict[str, Any]:
    """Return machine, versions and commit."""
    return {"machine": machine(), "versions": versions(), "git": git_state()}
