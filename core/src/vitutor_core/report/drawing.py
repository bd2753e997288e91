"""How the report's figures look. Each is drawn twice, for a light and a dark page, as PNG.

A method has the same colour and marker in every figure: colours are those of Okabe and Ito (2008), which people with
colour-blindness can tell apart, and markers and labels say the same again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitutor_core.files import atomic
from vitutor_core.report.paper import PaperResults

# The first method is the baseline: grey.
COLOURS = ("#8A8A8A", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<")
# Suffix of the file; colours of the page, of text, and of grid lines, as in report.html.
_THEMES = {"": ("#ffffff", "#1d2329", "#d9dee3"), "-dark": ("#171b20", "#e3e7eb", "#363d45")}


@dataclass(frozen=True)
class Picture:
    """A figure of the report: its two PNG files and what is said about it."""

    light: Path
    dark: Path
    title: str
    caption: str
    alt: str


def style_of(paper: PaperResults, row: str) -> dict[str, Any]:
    """Return colour, marker and label of a row's method."""
    place = paper.place_of(row)
    colour, marker = COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)]
    return {"color": colour, "marker": marker, "label": paper.title_of(row), "linewidth": 2, "markersize": 5}


def draw_legend(figure: Any, axes: Any) -> None:
    """Put one legend for all panels below them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def save_picture(base: Path, draw: Callable[[Any], None], *, title: str, caption: str, alt: str) -> Picture:
    """Let ``draw`` fill a matplotlib figure, once per theme, and save it as ``<base>.png`` and ``<base>-dark.png``."""
    # Without pyplot there is no global state, and files are always drawn by Agg.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    for suffix, colours in _THEMES.items():
        with rc_context(_settings(*colours)):
            figure = Figure(figsize=(8.4, 3.7), layout="constrained")
            draw(figure)
            with atomic(base.with_name(f"{base.name}{suffix}.png")) as partial:
                figure.savefig(partial, dpi=160, format="png")
    light, dark = (base.with_name(f"{base.name}{suffix}.png") for suffix in _THEMES)
    return Picture(light, dark, title, caption, alt)


def _settings(page: str, ink: str, soft: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), page),
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink),
        **dict.fromkeys(("axes.edgecolor", "grid.color"), soft),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "xtick.bottom", "ytick.left"), False),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "errorbar.capsize": 3,
        "font.size": 9.5,
        "grid.linewidth": 0.6,
    }
