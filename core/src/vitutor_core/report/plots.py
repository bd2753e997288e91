"""The report's figures, from the measured results and the paper's numbers."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.report.drawing import (
    INK,
    QUIET,
    Picture,
    beside_the_paper,
    draw_legend,
    ordered_colours,
    save_picture,
    style_of,
    told_apart,
)
from vitutor_core.report.groups import groups_figure
from vitutor_core.report.paper import PaperResults, Series
from vitutor_core.report.render import gap, signed
from vitutor_core.report.results import Run
from vitutor_core.report.table import Rows, measured_on
from vitutor_core.report.verdict import Json


def draw_figures(paper: PaperResults, table: Json, rows: Rows, folder: Path) -> list[Picture]:
    """Draw every figure whose data are there into ``folder``, which is made if need be."""
    kinds = {"fraction": groups_figure, "ablation": ablation_figure, "groups": groups_figure}
    pictures = [kinds[part["figure"]](paper, part, folder) for part in table["tables"] if part["figure"]]
    for number, (title, drawn) in enumerate(paper.curves.items(), start=1):
        name = "learning-curves" if number == 1 else f"learning-curves-{number}"
        pictures += [curves_figure(paper, title, {row: rows[row] for row in drawn if row in rows}, folder / name)]
    pictures += [series_figure(paper, series, rows, folder) for series in paper.series]
    return [picture for picture in pictures if picture is not None]


def ablation_figure(paper: PaperResults, part: Json, folder: Path) -> Picture | None:
    """Draw the gain of each row over the baseline as bars: ours with its standard error, and the paper's.

    ``part`` is a table of `build_table`. None unless a difference was measured.
    """
    lines = [line for line in part["lines"] if line["method"]]
    lines = [line for line in lines if line["difference"] or line["paper_difference"] is not None]
    if not any(line["difference"] for line in lines):
        return None
    labels = told_apart(paper, lines)

    def draw(figure: Any) -> None:
        left, right = beside_the_paper(figure, part, sharey=True)
        for index, line in enumerate(lines):
            for axes, found in ((left, line["difference"]), (right, {"mean": line["paper_difference"]})):
                if found and found["mean"] is not None:
                    error = found.get("standard_error")
                    colour = style_of(paper, line["method"])["color"]
                    axes.barh(index, found["mean"], xerr=error, color=colour, ecolor=INK)
                    beyond = max(0.0, found["mean"] + (error or 0.0))
                    text = f"{found['mean']:+.{part['decimals']}f}".replace("-", "\N{MINUS SIGN}")
                    axes.annotate(text, (beyond, index), (4, 0), textcoords="offset points", va="center")
        for axes in (left, right):
            axes.axvline(0, color=QUIET, linewidth=1)
            axes.set(xlabel=f"gain over the baseline ({part['unit']})")
            axes.margins(x=0.16)
        left.set_yticks(range(len(lines)), labels)
        left.invert_yaxis()

    listed = "; ".join(
        f"{label}: {gap(line['difference'], part['decimals'])}, "
        f"paper {signed(line['paper_difference'], part['decimals'])}"
        for label, line in zip(labels, lines, strict=True)
        if line["difference"]
    )
    return save_picture(
        folder / f"ablation-{part['id']}",
        draw,
        title=f"{part['title']}: what each part adds",
        caption=f"{'Top-1' if part['metric'] == 'top1' else part['metric']} minus that of "
        f"{paper.title_of(part['baseline'])}, in {part['unit']}; whiskers are one standard error.",
        alt=f"Bar chart of gains over the baseline in {part['unit']}. {listed}.",
    )


def curves_figure(paper: PaperResults, title: str, rows: Rows, base: Path) -> Picture | None:
    """Draw the evaluation accuracy of ``rows`` against epochs into ``<base>.svg``. None without curves."""
    kept = {row: [run for run in runs if any(run.curves.get("top1", []))] for row, runs in rows.items()}
    curves = {row: _mean_curve(runs, "top1") for row, runs in kept.items()}
    curves = {row: curve for row, curve in curves.items() if len(curve[0]) > 1}
    if not curves:
        return None
    last = max(curve[0][-1] for curve in curves.values())

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axes, first in ((left, 0.0), (right, 0.6 * last)):
            for row, curve in curves.items():
                epochs, means, spreads = curve[:, curve[0] >= first]
                style = style_of(paper, row) | {"markevery": max(1, len(epochs) // 6)}
                axes.plot(epochs, means, **style)
                low, high = means - spreads, means + spreads
                axes.fill_between(epochs, low, high, color=style["color"], alpha=0.18, linewidth=0)
            _epochs_below(axes, _events(rows, curves))
            axes.set(xlim=(first, last))
        left.set(title=f"whole training ({measured_on(chain(*rows.values()))})", ylabel="top-1 accuracy (%)")
        right.set_title("the end, enlarged")
        draw_legend(figure)

    ends = "; ".join(f"{paper.title_of(row)}: {curve[1][-1]:.1f}" for row, curve in curves.items())
    return save_picture(
        base,
        draw,
        title=title,
        caption="Accuracy on the evaluation images, mean over seeds; bands are one standard deviation."
        + "".join(
            f" {paper.title_of(row)}: the {len(kept[row])} of {len(rows[row])} seeds whose curves are kept."
            for row in curves
            if len(kept[row]) < len(rows[row])
        )
        + _named(_events(rows, curves)),
        alt=f"Line chart of top-1 accuracy in percent against epochs. At the end, {ends}.",
    )


def series_figure(paper: PaperResults, series: Series, rows: Rows, folder: Path) -> Picture | None:
    """Draw each of the columns of a series against epochs, a panel per row. None if no row has such columns."""
    panels = {row: lines for row in series.rows if row in rows and (lines := _numbered_curves(rows[row], series))}
    if not panels:
        return None

    def draw(figure: Any) -> None:
        axes_of = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (row, lines) in zip(axes_of, panels.items(), strict=True):
            colours = ordered_colours(len(lines))
            for number, ((epochs, means, _), colour) in enumerate(zip(lines, colours, strict=True), start=1):
                axes.plot(epochs, means, color=colour, linewidth=1.8)
                axes.annotate(f"{number}", (epochs[-1], means[-1]), (4, 0), textcoords="offset points", va="center")
            _epochs_below(axes, _events(rows, [row]))
            axes.set(title=f"{paper.title_of(row)} ({measured_on(rows[row])})")
            axes.margins(x=0.08)
        axes_of[0].set_ylabel(series.axis)

    ends = "; ".join(
        f"{paper.title_of(row)}: " + ", ".join(f"{means[-1]:.1f}" for _, means, _ in lines)
        for row, lines in panels.items()
    )
    return save_picture(
        folder / series.id,
        draw,
        title=series.title,
        caption=f"{series.caption} The number at the end of a line counts from 1.{_named(_events(rows, panels))}",
        alt=f"Line charts of {series.axis} against epochs. At the end, from line 1, {ends}.",
    )


def _mean_curve(runs: Sequence[Run], column: str) -> NDArray[np.float64]:
    """Return epochs done, means and standard deviations over the runs where all measured ``column``, (3, epochs)."""
    points: dict[float, list[float]] = {}
    for run in runs:
        # strict=False: a column that was never measured is absent, so its list is empty
        for epoch, value in zip(run.curves["epoch"], run.curves.get(column, []), strict=False):
            if epoch is not None and value is not None:
                points.setdefault(epoch + 1, []).append(value)
    complete = {epoch: values for epoch, values in sorted(points.items()) if len(values) == len(runs)}
    spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in complete.values()]
    return np.array([list(complete), [statistics.fmean(values) for values in complete.values()], spreads])


def _numbered_curves(runs: Sequence[Run], series: Series) -> list[NDArray[np.float64]]:
    """Return the curves of the columns of a series, in the order of their numbers."""
    pattern = re.compile(re.escape(series.columns).replace(r"\*", r"(\d+)"))
    columns = sorted((int(found[1]), name) for name in runs[0].curves if (found := pattern.fullmatch(name)))
    curves = [_mean_curve(runs, name) for _, name in columns]
    return [curve for curve in curves if len(curve[0]) > 1]


def _events(rows: Rows, drawn: Iterable[str]) -> dict[int, str]:
    """Return what happens in the runs of the rows, by the number of epochs after which it does."""
    found = [event for row in drawn for event in rows[row][0].result.events.items()]
    return {epoch: name for name, epoch in sorted(found, key=lambda event: event[1])}


def _epochs_below(axes: Any, events: Iterable[int]) -> None:
    """Label the axis of epochs, and mark those after which something happens."""
    for epoch in events:
        axes.axvline(epoch, color=QUIET, linewidth=1, linestyle="--", zorder=0)
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)  # there is no half an epoch


def _named(events: dict[int, str]) -> str:
    """Return a sentence that says what the dashed lines of `_epochs_below` are."""
    return f" Dashed: {', '.join(dict.fromkeys(events.values()))}." if events else ""
