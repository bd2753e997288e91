"""How every benchmark times and reports."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitutor_core.provenance import git_state, machine, versions


def interleave(
    first: Callable[[], Any], second: Callable[[], Any], *, rounds: int, warm_up: int = 3
) -> tuple[list[float], list[float]]:
    """Time two functions in turn, A B A B ..., and return their times in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(warm_up + rounds):
        for function, own in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function()
            if number >= warm_up:
                own.append(time.perf_counter() - started)
    return times


def ratio(first: list[float], second: list[float]) -> dict[str, float]:
    """Return medians in milliseconds and the median of the pairwise ratios first / second."""
    return {
        "first_ms": statistics.median(first) * 1e3,
        "second_ms": statistics.median(second) * 1e3,
        "ratio": statistics.median(a / b for a, b in zip(first, second, strict=True)),
    }


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures with their provenance, and write them where --out says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    result = {"benchmark": name, **figures, "machine": machine(), "versions": versions(), "git": git_state()}
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
