"""Means, spreads and differences of rows, and what may be said of them.

The spread of a row is the sample standard deviation over its seeds. How a difference is tested: `report.significance`.
A verdict is one word:

- ``confirmed``: the rows differ, in the direction that the paper prints or claims
- ``contradicted``: they differ in the other direction
- ``above``, ``below``: they differ, and the paper names no direction
- ``smaller``: the test saw no difference, and one as large as the paper prints is excluded
- ``inconclusive``: the test saw no difference; ``smallest`` is the one that it would have seen with 80 % chance
- ``not run``: a row is missing or has one seed
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from vitutor_core.errors import DataError
from vitutor_core.report.results import Run
from vitutor_core.report.significance import LEVEL, Estimate, contrast, holm, p_value, smallest_effect, spread

Json = dict[str, Any]

SMOKE_TEST = "digits"
"""A scale, and its data, whose numbers get no verdict: it is there to show that everything runs."""


class Sample(NamedTuple):
    """A metric of the runs of a row."""

    runs: Sequence[Run]
    metric: str

    @property
    def values(self) -> list[float]:
        """Return the metric of each run; raises `DataError` if a run lacks it."""
        for run in self.runs:
            if self.metric not in run.result.metrics:
                raise DataError(f"{run.folder / 'metrics.json'}: no metric '{self.metric}'; train this row again")
        return [run.result.metrics[self.metric] for run in self.runs]


def summarise(sample: Sample | None) -> Json | None:
    """Return ``mean``, ``sd`` (sample standard deviation; null for one seed), ``n``, ``seeds`` and ``values``.

    None without runs; raises `DataError` if a run lacks the metric.
    """
    if sample is None or not sample.runs:
        return None
    values = sample.values
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "seeds": [run.result.seed for run in sample.runs],
        "values": values,
    }


def difference(ours: Sample | None, reference: Sample | None) -> Json | None:
    """Return ours minus reference, as `combined` does; None if either was not run."""
    if ours is None or reference is None or not ours.runs or not reference.runs:
        return None
    return combined([ours, reference], (1, -1))


def combined(samples: Sequence[Sample], factors: Sequence[int]) -> Json:
    """Return the sum of ``factors`` times the samples: ``mean``, ``standard_error``, its ``df``, ``p`` and ``over``.

    ``over`` says what the error is over: ``seeds and images`` where it is known which images each row got right,
    else ``seeds``. All but the mean are null if a row has one seed.
    """
    if min(len(sample.runs) for sample in samples) == 1:
        mean = sum(factor * statistics.fmean(sample.values) for sample, factor in zip(samples, factors, strict=True))
        return {"mean": mean, "standard_error": None, "df": None, "p": None, "over": None}
    answers = _same_images(*samples)
    known = [sample.values for sample in samples]
    found = contrast(answers, factors) if answers is not None else spread(known, factors)
    numbers = {name: float(value) for name, value in (*found._asdict().items(), ("p", p_value(found)))}
    return numbers | {"over": "seeds" if answers is None else "seeds and images"}


def _same_images(*samples: Sample) -> list[np.ndarray] | None:
    """Return which images each sample got right, (seeds, images), if that is known and all saw the same images."""
    answers = [[run.result.right(sample.metric) for run in sample.runs] for sample in samples]
    known = [right for row in answers for right in row if right is not None]
    seen = {str(run.result.evaluated_on) for sample in samples for run in sample.runs}
    if len(known) < sum(map(len, answers)) or len(seen) > 1:
        return None
    return [np.stack([right for right in row if right is not None]) for row in answers]


class Pair(NamedTuple):
    """A difference of two rows: what the paper prints or claims of it, and what `difference` found."""

    printed: float | None
    claim: Literal["above", "below"] | None
    """The side that the text claims where no number is printed."""
    found: Json | None

    @property
    def side(self) -> float:
        """Positive above, negative below, 0 where the paper names no direction."""
        return {"above": 1.0, "below": -1.0, None: self.printed or 0.0}[self.claim]


def judge(pairs: Sequence[Pair]) -> list[Json]:
    """Judge the differences of one table.

    Returns, for each, ``verdict``, ``p_holm`` (null where nothing was tested) and ``smallest`` (null unless the test
    saw nothing, and where the seeds do not vary at all).
    """
    tested = {
        index: pair.found for index, pair in enumerate(pairs) if pair.found is not None and pair.found["p"] is not None
    }
    adjusted = holm([found["p"] for found in tested.values()])
    # Once Holm's steps have stopped, every p-value that is left was held against this level.
    left = LEVEL / max(1, int((adjusted > LEVEL).sum()))
    too_small = _smaller({index: (found, pairs[index].printed or 0.0) for index, found in tested.items()})
    verdicts: list[Json] = [{"verdict": "not run", "p_holm": None, "smallest": None} for _ in pairs]
    for (index, found), p in zip(tested.items(), adjusted, strict=True):
        verdict, smallest, claimed = "inconclusive", None, pairs[index].side
        if p <= LEVEL:
            side = "above" if found["mean"] > 0 else "below"
            verdict = side if not claimed else "confirmed" if (side == "above") == (claimed > 0) else "contradicted"
        elif found["standard_error"] > 0:
            smallest = float(smallest_effect(found["standard_error"], found["df"], left))
            verdict = "smaller" if index in too_small else verdict
        verdicts[index] = {"verdict": verdict, "p_holm": float(p), "smallest": smallest}
    return verdicts


def _smaller(tested: Mapping[int, tuple[Json, float]]) -> set[int]:
    """Return which differences, each with the paper's, fall short of it by more than chance.

    This is a second question to a table, and the chance of any false answer to it is `LEVEL` again.
    """
    sized = {index: pair for index, pair in tested.items() if pair[1]}
    short = {index: math.copysign(1, printed) * (printed - found["mean"]) for index, (found, printed) in sized.items()}
    p = [
        p_value(Estimate(np.asarray(short[index]), np.asarray(found["standard_error"]), found["df"]))
        for index, (found, _) in sized.items()
    ]
    return {index for index, p in zip(sized, holm(p), strict=True) if p <= LEVEL and short[index] > 0}


def sentence(
    subject: str,
    reference: str,
    where: str,
    found: Json | None,
    judged: Json | None,
    *,
    unit: str = "points",
    decimals: int = 1,
    printed: float | None = None,
) -> str:
    """Say in words how ``subject`` stands to ``reference``; ``where`` is empty or says at which share of the data.

    ``judged`` is what `judge` returns, None at a scale without verdicts; ``printed`` is the paper's difference.
    """
    subject = subject[:1].upper() + subject[1:]
    if found is None:
        return f"{subject} against {reference}{where}: not run."
    error = "" if found["standard_error"] is None else f" +- {found['standard_error']:.{decimals}f}"
    value = f"{found['mean']:+.{decimals}f}{error} {unit}"
    if judged is None:
        return f"{subject} minus {reference}{where}: {value}."
    if judged["verdict"] == "not run":
        return f"{subject} minus {reference}{where}: not run with several seeds ({value} from one)."
    theirs = None if printed is None else f"{printed:+.{decimals}f}"
    if judged["verdict"] == "smaller":
        word = "short of" if found["mean"] * (printed or 0.0) >= 0 else "on the other side of"
        return f"{subject} minus {reference}{where}: {value}, {word} the paper's {theirs}: smaller."
    if judged["verdict"] == "inconclusive":
        smallest = judged["smallest"]
        seen = "" if smallest is None else f" ({smallest:.{decimals}f} would be seen with 80 % chance)"
        return f"{subject} minus {reference}{where}: {value}, inconclusive{seen}."
    side, other = ("above", "below") if found["mean"] > 0 else ("below", "above")
    claim = theirs or (side if judged["verdict"] == "confirmed" else other)
    said = "" if judged["verdict"] == side else f" (paper: {claim}): {judged['verdict']}"
    return f"{subject} is {abs(found['mean']):.{decimals}f}{error} {unit} {side} {reference}{where}{said}."


def summary(tables: Sequence[Sequence[Json]]) -> str:
    """Count the verdicts of the comparisons of all tables, and say how many differences chance alone would show.

    A comparison that several tables make is counted once, with the verdict of the table that asks most of it. Not seen,
    it is smaller only if it falls short of what each of them prints.
    """
    strictest: dict[tuple[str, str], Json] = {}
    for pair in (pair for table in tables for pair in table):
        key = pair["row"], pair["to"]
        if key not in strictest or _asked(pair) > _asked(strictest[key]):
            strictest[key] = pair
    count = Counter(pair["verdict"] for pair in strictest.values())
    parts = [f"{count[verdict]} {verdict}" for verdict in ("confirmed", "contradicted", "inconclusive")]
    parts += [f"{count['smaller']} smaller than the paper's"] if count["smaller"] else []
    if unprinted := count["above"] + count["below"]:
        parts.append(f"{unprinted} clear where the paper names no side")
    parts += [f"{count['not run']} not run"] if count["not run"] else []
    tested = sum(any(pair["p_holm"] is not None for pair in table) for table in tables)
    number = f"{tested} tables" if tested != 1 else "one table"
    return (
        f"Of {len(strictest)} differences in the paper's tables: {', '.join(parts)}. If no two rows differed, chance "
        f"alone would show about {LEVEL * tested:.2g} differences in {number} (5 % for each table as a whole)."
    )


def _asked(pair: Json) -> tuple[int, float]:
    """Order the verdicts on one comparison by how much their tables ask of it."""
    return {"not run": -1, "smaller": 1, "inconclusive": 2}.get(pair["verdict"], 0), pair["p_holm"] or 0
