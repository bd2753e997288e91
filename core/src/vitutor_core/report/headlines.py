"""One figure of the differences that the papers are about: of every paper that is published at a scale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitutor_core.report.drawing import COLOURS, INK, QUIET, Picture, draw_legend, save_picture
from vitutor_core.report.render import claimed, compared, gap
from vitutor_core.report.verdict import Json

HEADLINES = "headlines"
"""Name of the figure's file, and of the block of a page that shows it."""
_COLOURS = {
    "confirmed": COLOURS[3],
    "contradicted": COLOURS[4],
    "smaller": COLOURS[1],
    "inconclusive": COLOURS[0],
    "above": COLOURS[2],
    "below": COLOURS[2],
}
"""Of each verdict; where the paper names no side, a difference that is seen lies above or below."""


def headline_figure(folder: Path) -> Picture | None:
    """Draw the judged headline differences of the tables in ``folder`` into ``headlines.svg``.

    None, and no file, if there are none.

    Each is a point with its 95 % interval, by the t-quantile of its own degrees of freedom, in points of accuracy.
    """
    files = [path.with_name(path.name.removesuffix("-runs.json") + ".json") for path in folder.glob("*-runs.json")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(files) if path.exists()]
    tables = [table for table in found if "tables" in table]  # a comparison, which may lie there too, has none
    pairs = [(table, pair) for table in tables for pair in _judged(table)]
    if not pairs:
        (folder / f"{HEADLINES}.svg").unlink(missing_ok=True)
        return None
    pairs.sort(key=lambda entry: -entry[1]["ours"]["mean"])

    def draw(figure: Any) -> None:
        from scipy.special import stdtrit

        figure.set_size_inches(8.4, 1.5 + 0.5 * len(pairs))
        axes = figure.subplots()
        for position, (_, pair) in enumerate(pairs):
            ours, verdict = pair["ours"], pair["verdict"]
            half = ours["standard_error"] * stdtrit(ours["df"], 0.975)
            style = {"color": _COLOURS[verdict], "marker": "o", "linestyle": "", "label": f"here: {verdict}"}
            axes.errorbar(ours["mean"], position, xerr=half, **style)
            if pair["paper"] is not None:
                style = {"color": QUIET, "marker": "D", "fillstyle": "none", "linestyle": "", "label": "in the paper"}
                axes.plot(pair["paper"], position, **style)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(pairs)), [f"{table['paper']}\n{compared(pair)}" for table, pair in pairs])
        axes.invert_yaxis()
        axes.margins(y=0.12)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference in top-1 accuracy (points)")
        draw_legend(figure)

    scale = tables[0]["scale"]
    said = "; ".join(f"{table['paper']}, {_said(pair)}" for table, pair in pairs)
    return save_picture(
        folder / HEADLINES,
        draw,
        title=f"What the papers are about, at scale {scale}",
        caption="Differences with their 95 % intervals, each by itself; verdicts share 5 % among the differences of a "
        "table, so an interval just clear of 0 may be inconclusive. The papers' are of their own scales.",
        alt=f"Differences with intervals. {said}.",
    )


def _judged(table: Json) -> list[Json]:
    pairs = [pair for part in table["tables"] for pair in part["comparisons"]]
    return [pair for pair in pairs if pair["headline"] and pair["ours"] and pair["verdict"] in _COLOURS]


def _said(pair: Json) -> str:
    return f"{compared(pair)}: {gap(pair['ours'])}, {pair['verdict']} (paper: {claimed(pair)})"
