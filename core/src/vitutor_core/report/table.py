"""The paper's tables with the measured numbers beside the printed ones, as plain JSON values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from vitutor_core.report.paper import Comparison, Cost, MeasuredCell, PaperResults, PaperTable, split_row
from vitutor_core.report.results import Run
from vitutor_core.report.verdict import Json, agrees, difference, outcome_of, sentence, summarise, summary

Rows = Mapping[str, Sequence[Run]]

_COSTS = {"parameters": ("parameters", 1e6), "macs": ("flops", 2e9), "images_per_s": ("images_per_s", 1.0)}
"""The metric of a cost, and its unit."""


def build_table(paper: PaperResults, rows: Rows) -> Json:
    """Put the results of each row beside the paper's number, for every table of which a row was measured.

    ``rows`` is what `load_results` returns. The result has ``paper``, ``title``, ``citation``, ``setting``, ``scale``,
    ``seeds``, ``evaluation_images``, ``notes``, ``summary`` and ``tables``; each table has ``lines``, one per printed
    number, and ``comparisons`` with their verdicts. Rows without results have null where a measured number would be.
    Measured rows that no table prints are in ``further``.
    """
    runs = [run for same_row in rows.values() for run in same_row]
    tables = [
        _table(paper, table, rows)
        for table in paper.tables
        if any(split_row(row)[0] in rows for row in table.reproduced())
    ]
    printed = {split_row(line["row"])[0] for table in tables for line in table["lines"] if line["row"]}
    # Encoders whose head is not trained have no accuracy.
    further = [row for row in rows if row not in printed and "top1" in rows[row][0].result.metrics]
    comparisons = {(pair["row"], pair["to"]): pair for table in tables for pair in table["comparisons"]}
    images = sorted({int(run.result.metrics["images"]) for run in runs if "images" in run.result.metrics})
    scale = runs[0].result.scale
    return {
        "paper": paper.paper,
        "title": paper.title,
        "citation": paper.citation,
        "setting": paper.setting,
        "scale": scale,
        "seeds": sorted({run.result.seed for run in runs}),
        "evaluation_images": images,
        "notes": _notes(paper, scale, images),
        "summary": summary(list(comparisons.values())),
        "tables": tables,
        "further": [{"row": row, "ours": summarise(rows[row], "top1"), **_budget(rows[row])} for row in further],
    }


def _table(paper: PaperResults, table: PaperTable, rows: Rows) -> Json:
    return {
        "id": table.id,
        "title": table.title,
        "caption": table.caption,
        "metric": table.metric,
        "unit": table.unit,
        "decimals": table.decimals,
        "baseline": table.baseline,
        "figure": table.figure,
        "features": _features(table),
        "lines": [_line(paper, table, cell, rows) for cell in table.cells()],
        "comparisons": [_comparison(paper, table, pair, rows) for pair in table.comparisons],
    }


def _line(paper: PaperResults, table: PaperTable, cell: MeasuredCell, rows: Rows) -> Json:
    runs, ours = _measured(cell.row, table, rows)
    is_baseline = cell.row is not None and cell.row == table.baseline
    baseline = table.reproduced()[table.baseline] if table.baseline and not is_baseline else None
    _, reference = _measured(table.baseline if not is_baseline else None, table, rows)
    return {
        "label": cell.printed.label,
        "column": table.columns[cell.column] if len(table.measured) > 1 else None,
        "features": {name: cell.printed.cells.get(name) for name in table.columns if name not in table.measured}
        | {f"{name}, ours": _cost(_whole(cell.row, runs), cost) for name, cost in table.costs.items()},
        "fraction": cell.printed.fraction,
        "row": cell.row,
        "method": paper.method_of(cell.row) if cell.row else None,
        "is_baseline": is_baseline,
        "paper": cell.value,
        "paper_difference": _printed_difference(cell, baseline),
        "ours": ours,
        "difference": difference(ours, reference),
        **_budget(runs),
    }


def _features(table: PaperTable) -> dict[str, str]:
    """Return the headings of the columns beside the measured ones: what is printed, and what it is here."""
    found = {}
    for name, title in table.columns.items():
        if name not in table.measured:
            found[name] = title
        if name in table.costs:
            found[f"{name}, ours"] = f"{title}, ours"
    return found


def _whole(row: str | None, runs: Sequence[Run]) -> Sequence[Run]:
    """Return the runs unless a cell shows another network of theirs than the student, such as its agent."""
    return runs if row is not None and split_row(row)[1] is None else ()


def _cost(runs: Sequence[Run], cost: Cost) -> float | None:
    """Return what a row costs, as a mean over its runs, to three digits."""
    per_run = [
        run.result.seconds / 3600
        if cost == "hours"
        else run.result.metrics.get(_COSTS[cost][0], math.nan) / _COSTS[cost][1]
        for run in runs
    ]
    found = [value for value in per_run if not math.isnan(value)]
    return float(f"{statistics.fmean(found):.3g}") if found else None


def _measured(name: str | None, table: PaperTable, rows: Rows) -> tuple[Sequence[Run], Json | None]:
    """Return the runs of ``row`` or ``row:metric``, and the summary of that metric over them."""
    if name is None:
        return [], None
    row, metric = split_row(name)
    runs, wanted = rows.get(row, []), metric or table.metric
    if table.optional and not any(wanted in run.result.metrics for run in runs):
        return runs, None
    return runs, summarise(runs, wanted)


def _budget(runs: Sequence[Run]) -> Json:
    """Return what a row was given, which is the same for all its seeds, and the command of the first."""
    names = ("train_images", "epochs", "updates", "command")
    return {name: getattr(runs[0].result, name) if runs else None for name in names}


def _printed_difference(cell: MeasuredCell, reference: MeasuredCell | None) -> float | None:
    if reference is None or cell.value is None or reference.value is None:
        return None
    # Printed numbers have one or two decimals; more would be an artefact of binary fractions.
    return round(cell.value - reference.value, 6)


def _comparison(paper: PaperResults, table: PaperTable, pair: Comparison, rows: Rows) -> Json:
    first, second = (table.reproduced()[row] for row in (pair.row, pair.to))
    ours = [_measured(row, table, rows)[1] for row in (pair.row, pair.to)]
    printed, found = _printed_difference(first, second), difference(ours[0], ours[1])
    subject, reference, where = _names(paper, pair, first.printed.fraction, second.printed.fraction)
    outcome = outcome_of(found)
    return {
        "row": pair.row,
        "to": pair.to,
        "headline": pair.headline,
        "subject": subject,
        "reference": reference,
        "where": where,
        "paper": printed,
        "ours": found,
        "seeds": [stats["n"] if stats else 0 for stats in ours],
        "outcome": outcome,
        "agrees": agrees(printed, outcome),
        "sentence": sentence(subject, reference, where, found, unit=table.unit, decimals=table.decimals),
    }


def _names(paper: PaperResults, pair: Comparison, first: float | None, second: float | None) -> tuple[str, str, str]:
    """Name both sides and, if they share it, the share of the data; otherwise each side carries its own."""
    titles = paper.title_of(pair.row), paper.title_of(pair.to)
    if first == second:
        return *titles, _at(first)
    return titles[0] + _at(first), titles[1] + _at(second), ""


def _at(fraction: float | None) -> str:
    if fraction is None:
        return ""
    return " with all the data" if fraction == 1 else f" at {100 * fraction:g} % of the data"


def _notes(paper: PaperResults, scale: str, images: Sequence[int]) -> list[str]:
    notes = []
    if scale != paper.scale:
        notes.append(
            f"The paper's numbers are for {paper.setting}; ours are at the scale '{scale}'. "
            "Accuracies at different scales cannot be compared, only the differences between rows."
        )
    notes.append(
        "Ours: mean +- sample standard deviation over seeds. Differences: +- standard error; one smaller than two "
        "standard errors is not called clear. With three seeds, chance alone passes this bar in more than one case "
        "of ten, so more seeds make a verdict firmer."
    )
    if images:
        counts = " or ".join(f"{count:,} evaluation images (one is {100 / count:.2f} points)" for count in images)
        notes.append(f"Accuracy is over {counts}; the spread does not include the choice of these images.")
    return notes
