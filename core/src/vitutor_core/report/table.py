"""The paper's tables with the measured numbers beside the printed ones, as plain JSON values."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from vitutor_core.report.paper import Comparison, Cost, MeasuredCell, PaperResults, PaperTable, split_row
from vitutor_core.report.results import Run
from vitutor_core.report.verdict import SMOKE_TEST, Json, Pair, Sample, difference, judge, sentence, summarise, summary

Rows = Mapping[str, Sequence[Run]]

_COSTS = {"parameters": ("parameters", 1e6), "macs": ("flops", 2e9), "images_per_s": ("images_per_s", 1.0)}
"""The metric of a cost, and its unit."""
_SMOKE_TEST = "This scale is a smoke test: it shows that the rows run, and is too easy and too small for verdicts."


def build_table(paper: PaperResults, rows: Rows) -> Json:
    """Put the results of each row beside the paper's number, for every table of which a row was measured.

    ``rows`` is what `load_results` returns. The result has ``paper``, ``title``, ``citation``, ``setting``, ``scale``,
    ``seeds``, ``evaluation_images``, ``is_smoke_test``, ``notes``, ``summary`` and ``tables``; each table has
    ``lines``, one per printed number, and ``comparisons`` with their verdicts, null in a smoke test. Rows without
    results have null where a measured number would be. Measured rows that no table prints are in ``further``.
    """
    runs = [run for same_row in rows.values() for run in same_row]
    scale = runs[0].result.scale
    is_smoke_test = scale == SMOKE_TEST
    tables = [
        _table(paper, table, rows, judged=not is_smoke_test)
        for table in paper.tables
        if scale in (table.scales or (scale,)) and any(split_row(row)[0] in rows for row in table.reproduced())
    ]
    printed = {split_row(line["row"])[0] for table in tables for line in table["lines"] if line["row"]}
    # Encoders whose head is not trained have no accuracy.
    further = [row for row in rows if row not in printed and "top1" in rows[row][0].result.metrics]
    comparisons = [table["comparisons"] for table in tables]
    images = sorted({int(run.result.metrics["images"]) for run in runs if "images" in run.result.metrics})
    return {
        "paper": paper.paper,
        "title": paper.title,
        "citation": paper.citation,
        "setting": paper.setting,
        "scale": scale,
        "seeds": sorted({run.result.seed for run in runs}),
        "evaluation_images": images,
        "is_smoke_test": is_smoke_test,
        "notes": _notes(paper, scale, images, comparisons),
        "summary": _SMOKE_TEST if is_smoke_test else summary(comparisons),
        "tables": tables,
        "further": [
            {"row": row, "ours": summarise(Sample(rows[row], "top1")), **_budget(rows[row])} for row in further
        ],
    }


def measured_on(runs: Iterable[Run]) -> str:
    """Name the scale of the runs and the size of their images."""
    results = [run.result for run in runs]
    sizes = sorted(
        {int(data["image_size"]) for result in results if "image_size" in (data := result.config.get("data") or {})}
    )
    return ", ".join((results[0].scale, *([f"{' and '.join(map(str, sizes))} px"] if sizes else [])))


def _table(paper: PaperResults, table: PaperTable, rows: Rows, *, judged: bool) -> Json:
    own = [run for name in table.reproduced() for run in rows.get(split_row(name)[0], [])]
    return {
        "id": table.id,
        "title": table.title,
        "caption": table.caption,
        "setting": {"ours": measured_on(own), "paper": table.setting or paper.scale},
        "metric": table.metric,
        "unit": table.unit,
        "decimals": table.decimals,
        "baseline": table.baseline,
        "figure": table.figure,
        "features": _features(table),
        "lines": [_line(paper, table, cell, rows) for cell in table.cells()],
        "comparisons": _comparisons(paper, table, rows, judged=judged),
    }


def _line(paper: PaperResults, table: PaperTable, cell: MeasuredCell, rows: Rows) -> Json:
    runs, ours = _measured(cell.row, table, rows)
    # Costs are those of the student, and of no other network that a cell may show, such as its agent.
    whole = runs if cell.row is not None and split_row(cell.row)[1] is None else ()
    is_baseline = cell.row is not None and cell.row == table.baseline
    baseline = table.reproduced()[table.baseline] if table.baseline and not is_baseline else None
    _, reference = _measured(table.baseline if not is_baseline else None, table, rows)
    return {
        "label": cell.printed.label,
        "column": table.columns[cell.column] if len(table.measured) > 1 else None,
        "features": {name: cell.printed.cells.get(name) for name in table.columns if name not in table.measured}
        | {f"{name}, ours": _cost(whole, cost) for name, cost in table.costs.items()},
        "fraction": cell.printed.fraction,
        "row": cell.row,
        "method": paper.method_of(cell.row) if cell.row else None,
        "is_baseline": is_baseline,
        "paper": cell.value,
        "paper_difference": _printed_difference(cell, baseline),
        "ours": summarise(ours),
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


def _measured(name: str | None, table: PaperTable, rows: Rows) -> tuple[Sequence[Run], Sample | None]:
    """Return the runs of ``row`` or ``row:metric``, and that metric of them where it was measured."""
    if name is None:
        return [], None
    row, metric = split_row(name)
    runs, wanted = rows.get(row, []), metric or table.metric
    if table.optional and not any(wanted in run.result.metrics for run in runs):
        return runs, None
    return runs, Sample(runs, wanted) if runs else None


def _budget(runs: Sequence[Run]) -> Json:
    """Return what a row was given, which is the same for all its seeds, and the command of the first."""
    names = ("train_images", "epochs", "updates", "command")
    return {name: getattr(runs[0].result, name) if runs else None for name in names}


def _printed_difference(cell: MeasuredCell, reference: MeasuredCell | None) -> float | None:
    if reference is None or cell.value is None or reference.value is None:
        return None
    # Printed numbers have one or two decimals; more would be an artefact of binary fractions.
    return round(cell.value - reference.value, 6)


def _comparisons(paper: PaperResults, table: PaperTable, rows: Rows, *, judged: bool) -> list[Json]:
    cells = table.reproduced()
    samples = [[_measured(row, table, rows)[1] for row in (pair.row, pair.to)] for pair in table.comparisons]
    printed = [_printed_difference(cells[pair.row], cells[pair.to]) for pair in table.comparisons]
    found = [difference(*both) for both in samples]
    pairs = [Pair(value, pair.claim, ours) for pair, value, ours in zip(table.comparisons, printed, found, strict=True)]
    verdicts = judge(pairs) if judged else [None] * len(found)
    names = [_names(paper, pair, cells) for pair in table.comparisons]
    lines = []
    for pair, name, both, value, ours, verdict in zip(
        table.comparisons, names, samples, printed, found, verdicts, strict=True
    ):
        subject, reference, where = name
        if names.count(name) > 1:
            where += _detail(table, cells[pair.row])
        said = sentence(
            subject, reference, where, ours, verdict, unit=table.unit, decimals=table.decimals, printed=value
        )
        lines.append(
            {
                "row": pair.row,
                "to": pair.to,
                "headline": pair.headline,
                "subject": subject,
                "reference": reference,
                "where": where,
                "paper": value,
                "claim": pair.claim,
                "ours": ours,
                "seeds": [len(sample.runs) if sample else 0 for sample in both],
                **(verdict or {"verdict": None, "p_holm": None, "smallest": None}),
                "sentence": said,
            }
        )
    return lines


def _names(paper: PaperResults, pair: Comparison, cells: Mapping[str, MeasuredCell]) -> tuple[str, str, str]:
    """Name both sides and, if they share it, the share of the data; otherwise each side carries its own."""
    first, second = (cells[row].printed.fraction for row in (pair.row, pair.to))
    titles = paper.title_of(pair.row), paper.title_of(pair.to)
    if first == second:
        return titles[0], titles[1], _at(first)
    return titles[0] + _at(first), titles[1] + _at(second), ""


def _detail(table: PaperTable, cell: MeasuredCell) -> str:
    """Say which number of a table it is, where two rows are compared by several: the cells in words, and the column."""
    words = [text for text in cell.printed.cells.values() if isinstance(text, str)]
    return f" ({', '.join([*words, table.columns[cell.column]])})"


def _at(fraction: float | None) -> str:
    if fraction is None:
        return ""
    return " with all the data" if fraction == 1 else f" at {100 * fraction:g} % of the data"


def _notes(paper: PaperResults, scale: str, images: Sequence[int], comparisons: Sequence[Sequence[Json]]) -> list[str]:
    notes = []
    if scale != paper.scale:
        notes.append(
            f"The paper's numbers are for {paper.setting}; ours are at the scale '{scale}'. "
            "Accuracies at different scales cannot be compared, only the differences between rows."
        )
    notes.append("Ours: mean +- sample standard deviation over seeds. Differences: +- standard error.")
    pairs = [pair for table in comparisons for pair in table]
    over = {pair["ours"]["over"] for pair in pairs if pair["ours"]} - {None}
    if scale != SMOKE_TEST and over:
        notes.append(
            "A verdict is a t-test on that error (degrees of freedom by Welch and Satterthwaite); Holm's correction "
            "keeps the chance of any false verdict in a table at 5 %. Confirmed and contradicted speak of the side on "
            "which a difference lies, not of its size. Inconclusive means that the test saw nothing; beside it stands "
            "the true difference that it would have seen with 80 % chance."
        )
    if any(pair["verdict"] == "smaller" for pair in pairs):
        notes.append(
            "Smaller: the test saw no difference, and ours falls short of the paper's by more than chance (a t-test of "
            "what is missing, with Holm's correction and 5 % of its own), at our scale."
        )
    if images:
        counts = " or ".join(f"{count:,} evaluation images (one is {100 / count:.2f} points)" for count in images)
        choice = {
            (): "no spread or error here includes",
            ("seeds",): "no spread or error here includes",
            ("seeds and images",): "the errors of differences include, spreads do not include",
        }.get(tuple(sorted(over)), "the errors of some differences (those of top-1) include, spreads do not include")
        notes.append(f"Accuracy is over {counts}; {choice} the choice of these images.")
    return notes
