"""The table of `vitutor compare`, as plain JSON values: what each line adds to the student alone, and what it costs.

Every gain is over the student alone at equal updates; ``to_long`` is over the student alone, trained for the total
compute of the costliest method, and empty for a line that took more than that. Holm's correction is over the gains of
the table, and over each other column by itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from vitutor_core.report.results import Run
from vitutor_core.report.verdict import SMOKE_TEST, Json, Pair, Sample, combined, difference, judge, summarise

Kind = Literal["plain", "long", "method", "model", "composition"]
"""Of a line: the student alone; that for longer; a way to train it; another model; several ways at once."""


class Spent(NamedTuple):
    """What was spent: updates, images seen, seconds measured, and FLOPs counted."""

    updates: float = 0
    images: float = 0
    seconds: float = 0
    flops: float = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


class Entrant(NamedTuple):
    """A line and its runs, one for each seed.

    own: what its student has that the common one has not. spent: by one run. before: by the runs and teachers that one
    run needs. parts: the lines that a composition is made of. uncounted: teachers whose training is not known.
    """

    name: str
    title: str
    kind: Kind
    runs: Sequence[Run]
    spent: Spent
    before: Spent = Spent()
    own: str | None = None
    parts: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()


def spent_by(runs: Sequence[Run], flops: float) -> Spent:
    """Return what one of the runs has spent, the seconds as their mean."""
    first = runs[0].result
    batch = (first.config.get("train") or {}).get("batch_size", 0)
    seconds = statistics.fmean(run.result.seconds for run in runs)
    return Spent(first.updates, first.updates * batch, seconds, flops)


def build_leaderboard(entrants: Sequence[Entrant], teachers: Sequence[Json], facts: Mapping[str, object]) -> Json:
    """Put the lines into order, the most accurate first, with gains, verdicts and costs.

    ``teachers`` have ``name``, ``model``, ``top1`` and what they cost; ``facts`` go into the head of the table: scale,
    source, student, image size and so on. Lines without runs are left out.
    """
    done = [entrant for entrant in entrants if entrant.runs]
    samples = {entrant.name: Sample(entrant.runs, "top1") for entrant in done}
    plain = next(entrant for entrant in done if entrant.kind == "plain")
    long = next((entrant for entrant in done if entrant.kind == "long"), None)
    judged = facts["source"] != SMOKE_TEST
    lines = [_line(entrant, samples, plain, long) for entrant in done]
    _judge([line for line in lines if line["gain"]], "gain", "verdict", judged=judged)
    _judge([line for line in lines if line["to_long"]], "to_long", "verdict_to_long", judged=judged)
    compositions = [line for line in lines if line["parts"]]
    for line in compositions:
        line.update(_composed(line, samples, plain.name))
    _judge([line for line in compositions if line["extra"]], "extra", "verdict_of_extra", judged=judged)
    ordered = sorted(lines, key=lambda line: -line["top1"]["mean"])
    board = {**facts, "is_smoke_test": not judged, "lines": ordered, "teachers": list(teachers)}
    return board | {"answer": answer(board)}


def _line(entrant: Entrant, samples: Mapping[str, Sample], plain: Entrant, long: Entrant | None) -> Json:
    ours, whole = samples[entrant.name], entrant.spent.plus(entrant.before)
    first = entrant.runs[0].result
    # Against less compute than it took, a gain could be that of the compute.
    is_fair = long is not None and whole.flops <= long.spent.plus(long.before).flops
    compared = long if is_fair and entrant.kind in {"method", "composition"} else None
    return {
        "name": entrant.name,
        "title": entrant.title,
        "kind": entrant.kind,
        "own": entrant.own,
        "parts": list(entrant.parts),
        "student": (first.config.get("student") or {}).get("name"),
        "parameters": first.metrics.get("parameters"),
        "teachers": {role: teacher.name for role, teacher in first.teachers.items()},
        "uncounted": list(entrant.uncounted),
        "top1": summarise(ours),
        "gain": None if entrant is plain else difference(ours, samples[plain.name]),
        "to_long": None if compared is None else difference(ours, samples[compared.name]),
        "spent": entrant.spent._asdict(),
        "before": entrant.before._asdict(),
        "compute": whole.flops / (plain.spent.flops or 1),
        "seconds": whole.seconds,
    }


def _judge(lines: Sequence[Json], of: str, key: str, *, judged: bool) -> None:
    """Write the verdicts of a column into its lines, Holm's correction being over them."""
    found = judge([Pair(None, None, line[of]) for line in lines]) if judged else [None] * len(lines)
    for line, verdict in zip(lines, found, strict=True):
        line[key] = verdict


def _composed(line: Json, samples: Mapping[str, Sample], plain: str) -> Json:
    """Return the sum of the parts' gains, and how far the gain of all at once is from it."""
    parts = line["parts"]
    if any(part not in samples for part in parts):
        return {"sum": None, "extra": None}
    rows = [samples[line["name"]], *(samples[part] for part in parts), samples[plain]]
    gains = [statistics.fmean(samples[part].values) - statistics.fmean(samples[plain].values) for part in parts]
    return {"sum": sum(gains), "extra": combined(rows, (1, *[-1] * len(parts), len(parts) - 1))}


def answer(board: Json) -> str:
    """Say in one sentence which line helps the student most with these images, and how sure that is."""
    methods = [line for line in board["lines"] if line["kind"] == "method"]
    if not methods:
        return "No method was run beside the student alone."
    best = max(methods, key=lambda line: line["gain"]["mean"])
    is_ahead = best["gain"]["mean"] > 0
    means = {round(line["top1"]["mean"], 9) for line in board["lines"]}
    if len(means) == 1:
        return _all_equal(means.pop(), board["evaluation_images"])
    if board["is_smoke_test"]:
        place = "is highest here" if is_ahead else "comes closest to the student alone, which none exceeds here"
        return f"{best['title']} {place} ({_gain(best)}); this is a smoke test, which gives no verdict."
    above = [line for line in methods if line["verdict"]["verdict"] == "above"]
    if not above:
        place = "the highest" if is_ahead else "none is above the student alone, and the closest"
        found = f"{place}, {best['title']}, has {_gain(best)}, {_unseen(best['verdict'])}"
        return f"With these images no method is seen to help: {found}."
    first, *others = sorted(above, key=lambda line: -line["gain"]["mean"])
    tested = [line for line in board["lines"] if line["gain"] and line["gain"]["p"] is not None]
    found = "has the highest gain of all methods" if first is best else "helps"
    text = f"With these images {first['title']} {found}: {_gain(first)}, beyond chance among {len(tested)} lines"
    titles = "; of ".join(line["title"] for line in others)  # a title may have a comma
    text += f"; so {'is that' if len(others) == 1 else 'are those'} of {titles}" if others else ""
    if first is not best:
        text += f". The highest mean is that of {best['title']}, {_gain(best)}, {_unseen(best['verdict'])}"
    return f"{text}. {_longer(board, first)}".strip()


def _all_equal(top1: float, images: int) -> str:
    """Say that all lines have the same accuracy, and why where they are right on all images."""
    if top1 == 100:
        return (
            f"All lines are right on all {images:,} evaluation images, which are too easy or too few to tell methods "
            "apart."
        )
    return f"All lines have the same mean accuracy ({top1:.1f} %): with these images no method is seen to help."


def _gain(line: Json) -> str:
    error = line["gain"]["standard_error"]
    spread = "" if error is None else f" +- {error:.1f}"
    return f"{line['gain']['mean']:+.1f}{spread} points at {line['compute']:.1f} times the compute"


def _unseen(verdict: Json) -> str:
    """Say why a gain is not seen to help."""
    if verdict["verdict"] == "below":
        return "worse than the student alone"
    if verdict["verdict"] == "not run":
        return "which cannot be tested with one seed"
    seen = verdict["smallest"]
    return "inconclusive" + ("" if seen is None else f"; a gain of {seen:.1f} would have been seen with 80 % chance")


def _longer(board: Json, line: Json) -> str:
    """Say whether as much compute spent on longer training would have done the same."""
    long = next((one for one in board["lines"] if one["kind"] == "long"), None)
    if long is None or line["to_long"] is None or line["verdict_to_long"] is None:
        return ""
    words = {"above": "less than the method", "below": "more than the method"}
    found = words.get(line["verdict_to_long"]["verdict"], "not distinguishable from the method")
    return (
        f"Training the student alone for {long['compute']:.1f} times the compute gives {long['gain']['mean']:+.1f} "
        f"points, {found}."
    )
