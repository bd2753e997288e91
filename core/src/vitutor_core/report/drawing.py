"""How the report's figures look. Each is one SVG that follows the colour scheme of whoever reads it.

A method has the same colour and marker in every figure: colours are those of Okabe and Ito (2008), which people with
colour-blindness can tell apart, and markers and labels say the same again.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitutor_core.files import write_text
from vitutor_core.report.paper import PaperResults
from vitutor_core.report.verdict import Json

# The first method is the baseline: grey.
COLOURS = ("#8A8A8A", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")
INK, QUIET, _LINE = "#1d2329", "#5b6570", "#d9dee3"
"""Colours of text, of what is beside it, and of grid lines; in the files they are variables of `THEME`."""
_VARIABLES = {INK: "var(--ink)", QUIET: "var(--quiet)", _LINE: "var(--line)"}
THEME = (
    f":root {{ --ink: {INK}; --quiet: {QUIET}; --line: {_LINE}; }}\n"
    "@media (prefers-color-scheme: dark) { :root { --ink: #e3e7eb; --quiet: #9ca6b0; --line: #363d45; } }\n"
)
"""The variables, for a light and for a dark page."""
_SETTINGS = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color"), _LINE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "xtick.bottom", "ytick.left"), False),
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "errorbar.capsize": 3,
    "font.size": 9.5,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib; others stand in where a reader lacks it
    "grid.linewidth": 0.6,
    "image.interpolation": "none",  # the pixels themselves, so that they stay sharp at any size
    "svg.fonttype": "none",
    "svg.hashsalt": "vitutor",  # equal figures are equal files
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its file and what is said about it."""

    path: Path
    title: str
    caption: str
    alt: str


def style_of(paper: PaperResults, row: str) -> dict[str, Any]:
    """Return colour, marker and label of a row's method."""
    position = paper.position_of(row)
    colour, marker = COLOURS[position % len(COLOURS)], _MARKERS[position % len(_MARKERS)]
    return {"color": colour, "marker": marker, "label": paper.title_of(row), "linewidth": 2, "markersize": 5}


def ordered_colours(count: int) -> list[Any]:
    """Return colours for lines that have an order, visible on a light and on a dark page."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("lines", [COLOURS[position] for position in (2, 6, 1, 4)])
    return [scale(position / max(1, count - 1)) for position in range(count)]


def told_apart(paper: PaperResults, lines: Sequence[Json]) -> list[str]:
    """Return the labels of lines of a table; where they are equal, with the titles or else the names of their rows."""
    labels = [line["label"] for line in lines]
    for name_of in (paper.title_of, str):
        uses = Counter(labels)
        labels = [
            f"{label}, {name_of(line['row'])}" if uses[label] > 1 else label
            for label, line in zip(labels, lines, strict=True)
        ]
    return labels


def beside_the_paper(figure: Any, part: Json, **shared: Any) -> tuple[Any, Any]:
    """Return a panel for what was measured and one for what the paper prints, titled with the images of either."""
    left, right = figure.subplots(1, 2, **shared)
    left.set_title(f"measured here ({part['setting']['ours']})")
    right.set_title(f"paper ({part['setting']['paper']})")
    return left, right


def draw_legend(figure: Any) -> None:
    """Put one legend for all panels below them, with one entry for each label."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)


def save_picture(base: Path, draw: Callable[[Any], None], *, title: str, caption: str, alt: str) -> Picture:
    """Let ``draw`` fill a matplotlib figure and save it as ``<base>.svg``, the same bytes for the same figure."""
    # Without pyplot there is no global state.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    text, path = io.StringIO(), base.with_name(f"{base.name}.svg")
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(8.4, 3.7), layout="constrained")
        draw(figure)
        figure.savefig(text, dpi=160, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn = text.getvalue()
    for colour, variable in _VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    write_text(path, drawn.replace('<style type="text/css">', f'<style type="text/css">\n{THEME}', 1))
    return Picture(path, title, caption, alt)
