"""Means, spreads and differences of rows, and what may be said of them.

The spread of a row is the sample standard deviation over its seeds. A difference of two rows comes with its standard
error, sqrt(s1^2 / n1 + s2^2 / n2), and is called clear unless it is smaller than twice that.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from vitutor_core.errors import DataError
from vitutor_core.report.results import Run

Json = dict[str, Any]


def summarise(runs: Sequence[Run], metric: str) -> Json | None:
    """Return ``mean``, ``sd`` (sample standard deviation; null for one seed), ``n``, ``seeds`` and ``values``.

    None without runs; raises `DataError` if a run lacks the metric.
    """
    if not runs:
        return None
    for run in runs:
        if metric not in run.result.metrics:
            raise DataError(f"{run.folder / 'metrics.json'}: no metric '{metric}'; train this row again")
    values = [run.result.metrics[metric] for run in runs]
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "seeds": [run.result.seed for run in runs],
        "values": values,
    }


def difference(ours: Json | None, reference: Json | None) -> Json | None:
    """Return ``mean`` and ``standard_error`` (null if either has one seed) of ours minus reference."""
    if ours is None or reference is None:
        return None
    error = None
    if ours["sd"] is not None and reference["sd"] is not None:
        error = math.sqrt(ours["sd"] ** 2 / ours["n"] + reference["sd"] ** 2 / reference["n"])
    return {"mean": ours["mean"] - reference["mean"], "standard_error": error}


def outcome_of(found: Json | None) -> str:
    """Judge a difference: ``above``, ``below``, ``unclear``, ``one seed`` (no spread) or ``not measured``."""
    if found is None:
        return "not measured"
    if found["standard_error"] is None:
        return "one seed"
    if found["mean"] == 0 or abs(found["mean"]) < 2 * found["standard_error"]:
        return "unclear"
    return "above" if found["mean"] > 0 else "below"


def sentence(
    subject: str, reference: str, where: str, found: Json | None, *, unit: str = "points", decimals: int = 1
) -> str:
    """Say in words how ``subject`` stands to ``reference``; ``where`` is empty or says at which share of the data."""
    outcome = outcome_of(found)
    if found is None:
        return f"{subject} against {reference}{where}: not measured."
    if outcome == "one seed":
        value = f"{found['mean']:+.{decimals}f} {unit}"
        return f"{subject} minus {reference}{where} is {value}, from one seed: not to be judged."
    mean, error = found["mean"], f"{found['standard_error']:.{decimals}f} {unit}"
    if outcome == "unclear":
        return f"No clear difference between {subject} and {reference}{where} ({mean:+.{decimals}f} +- {error})."
    return f"{subject} is {abs(mean):.{decimals}f} +- {error} {outcome} {reference}{where}."


def agrees(printed: float | None, outcome: str) -> bool | None:
    """Return whether a clear outcome has the sign of the paper's difference; None where one of them has no sign."""
    if not printed or outcome not in ("above", "below"):
        return None
    return (outcome == "above") == (printed > 0)


def summary(comparisons: Sequence[Json]) -> str:
    """Count the verdicts, whichever way they come out."""
    same = sum(pair["agrees"] is True for pair in comparisons)
    other = sum(pair["agrees"] is False for pair in comparisons)
    unclear = sum(pair["outcome"] == "unclear" for pair in comparisons)
    missing = len(comparisons) - same - other - unclear
    text = (
        f"Of {len(comparisons)} differences in the paper's tables, {same} came out clearly in the paper's direction, "
        f"{other} clearly the other way, and {unclear} without a clear difference"
    )
    return f"{text}; {missing} could not be judged." if missing else f"{text}."
