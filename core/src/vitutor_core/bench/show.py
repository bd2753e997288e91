"""The table and the figure of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitutor_core.bench.result import Result, Row
from vitutor_core.report.drawing import COLOURS, INK, Picture, save_picture
from vitutor_core.report.render import console_of


def show(results: Mapping[str, Result]) -> None:
    """Print ratios and figures as tables."""
    from rich.table import Table

    ratios = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("time of", "over time of", "ms", "ms", "ratio", "quartiles", "pairs", "goal on a GPU", "equal"):
        ratios.add_column(heading, justify="right" if heading in {"ms", "ratio", "pairs"} else "left")
    figures = Table(box=None, pad_edge=False, show_header=False)
    for result in results.values():
        for row in result.rows:
            spread = f"{row.low:.2f} to {row.high:.2f}"
            ratios.add_row(
                *(row.first, row.second, f"{row.first_ms:.2f}", f"{row.second_ms:.2f}"),
                *(f"{row.ratio:.2f}", spread, str(row.pairs), row.goal or "", row.equal or ""),
            )
        for name, value in result.figures.items():
            figures.add_row(name, f"{value:,.4g}")
        for name, reason in result.skipped.items():
            figures.add_row(name, f"left out: {reason}")
    console = console_of(180)
    console.print(ratios)
    console.print(figures)


def draw(results: Mapping[str, Result], base: Path, *, caption: str) -> Picture | None:
    """Draw all ratios with their quartiles on one axis into ``<base>.svg``; None where there is none."""
    rows = [(number, row) for number, result in enumerate(results.values()) for row in result.rows]
    if not rows:
        return None
    alt = "Ratios of times with quartiles: " + "; ".join(f"{_label(row)} {row.ratio:.2f}" for _, row in rows)
    return save_picture(base, lambda figure: _fill(figure, rows), title="Times side by side", caption=caption, alt=alt)


def _fill(figure: Any, rows: list[tuple[int, Row]]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure.set_size_inches(8.4, 1.0 + 0.26 * len(rows))
    axes = figure.subplots()
    for place, (part, row) in enumerate(rows):
        colour = COLOURS[1 + part % (len(COLOURS) - 1)]
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([row.ratio], [place], "o", color=colour, markersize=5)
    axes.axvline(1.0, color=INK, linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(rows)), [_label(row) for _, row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ratio of times: median and quartiles of pairs")


def _label(row: Row) -> str:
    return f"{row.first} / {row.second}"
