"""The files of an evaluation class by class: JSON, tables and a figure."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitutor_core.files import write_csv, write_json
from vitutor_core.report.drawing import COLOURS, Picture, save_picture

Json = dict[str, Any]

_MOST_NAMES = 25
"""How many classes can be named along an axis."""


def write_by_class(found: Json, folder: Path) -> list[Path]:
    """Write what `evaluate.confusion.by_class` found into ``folder`` and return the files.

    evaluation.json has all of it; classes.csv a line for each class; confusion.csv the matrix, a line for each true
    class; confusion.svg shows it. Raises `ResourceError` if they cannot be written.
    """
    names = [line["class"] for line in found["classes"]]
    write_json(folder / "evaluation.json", found)
    write_csv(folder / "classes.csv", [list(found["classes"][0]), *(line.values() for line in found["classes"])])
    rows = ([name, *counts] for name, counts in zip(names, found["confusion"], strict=True))
    write_csv(folder / "confusion.csv", [["class", *names], *rows])
    picture = draw_confusion(found, folder / "confusion")
    written = ("evaluation.json", "classes.csv", "confusion.csv")
    return [*(folder / name for name in written), picture.path]


def draw_confusion(found: Json, base: Path) -> Picture:
    """Draw the shares of each class's images that are taken for each class, and each class's accuracy."""
    names = [line["class"] for line in found["classes"]]
    shares = [[100 * count / max(sum(row), 1) for count in row] for row in found["confusion"]]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        shown = left.imshow(shares, vmin=0, vmax=100, cmap="viridis", aspect="auto")
        left.set(title="taken for (% of a class's images)", ylabel="class")
        _name(left.set_xticks, names, rotation=90)
        left.grid(visible=False)
        figure.colorbar(shown, ax=left)
        right.barh(range(len(names)), [line["top1"] or 0.0 for line in found["classes"]], color=COLOURS[2])
        right.axvline(found["balanced_top1"], color=COLOURS[4], linestyle="--", label="mean of the classes")
        right.set(title="accuracy (%)", xlim=(0, 100))
        _name(left.set_yticks, names, rotation=0)
        right.legend(loc="upper right", fontsize=7, frameon=False)  # "best" takes long for many classes

    mean = f"{found['balanced_top1']:.1f} %"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # names in scripts that the font does not have
        return save_picture(
            base,
            draw,
            title="Confusion matrix",
            caption="Left: a row for each true class, a column for each answer. Right: accuracy of each class.",
            alt=f"Heatmap of the confusion of {len(names)} classes; their mean accuracy is {mean}.",
        )


def _name(set_ticks: Any, names: Sequence[str], *, rotation: int) -> None:
    indices = range(0, len(names), -(-len(names) // _MOST_NAMES))
    set_ticks(list(indices), [_short(names[index]) for index in indices], fontsize=6, rotation=rotation)


def _short(name: str) -> str:
    name = name.replace("$", r"\$")  # matplotlib reads formulae between dollar signs
    return name if len(name) <= 20 else name[:19] + "\u2026"
