"""The figure of `vitutor agreement`: a few images, each beside what every model says of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.report.drawing import COLOURS, QUIET, Picture, save_picture

_ROW_INCHES, _HEAD_INCHES = 1.25, 0.75


def draw_agreement(
    shown: Sequence[dict[str, Any]], pictures: Sequence[NDArray[np.uint8]], labels: Sequence[str], folder: Path
) -> Picture:
    """Draw a row for each image: the image, then a panel for each model with the probabilities of a few classes.

    Args:
        shown: of each image ``kind``, ``probabilities`` by model and class and, None where they are not known, its
            ``class`` and the ``share`` of such images in percent.
        pictures: the images, (H, W, 3).
        labels: of the models, in the order of the panels.
        folder: where ``agreement.svg`` is written.

    """

    def draw(figure: Any) -> None:
        figure.set_size_inches(8.4, _HEAD_INCHES + _ROW_INCHES * len(shown))
        panels = figure.subplots(
            len(shown), 1 + len(labels), squeeze=False, width_ratios=[1, *[1.1] * len(labels)], sharex="col"
        )
        for (image, *bars), one, picture in zip(panels, shown, pictures, strict=True):
            _draw_image(image, picture, one)
            for axes, label, colour in zip(bars, labels, _colours(len(labels)), strict=True):
                _draw_bars(axes, one["probabilities"][label], colour, named=axes is bars[0])
        for axes, label in zip(panels[0][1:], labels, strict=True):
            axes.set_title(label, fontsize=9)
        figure.supxlabel("probability (%)", fontsize=9)

    listed = ". ".join(
        f"{_title(one, ', ')}: " + "; ".join(f"{label}: {_first(one['probabilities'][label])}" for label in labels)
        for one in shown
    )
    truth = any(one["class"] is not None for one in shown)
    return save_picture(
        folder / "agreement",
        draw,
        title=f"The same images by several models: {'; '.join(labels)}",
        caption="Probabilities of the same classes by each model"
        + (", the image's own class on top; the share of such images is beside each." if truth else "."),
        alt=f"Images beside bars of class probabilities. {listed}.",
    )


def _colours(count: int) -> list[str]:
    return [COLOURS[1 + index % (len(COLOURS) - 1)] for index in range(count)]


def _title(one: dict[str, Any], between: str) -> str:
    parts = [one["class"], one["kind"], None if one["share"] is None else f"{one['share']:.1f} %"]
    return between.join(part for part in parts if part is not None)


def _first(said: dict[str, float]) -> str:
    name = max(said, key=lambda one: said[one])
    return f"{name} {100 * said[name]:.0f} %"


def _draw_image(axes: Any, picture: NDArray[np.uint8], one: dict[str, Any]) -> None:
    axes.imshow(picture)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(labelbottom=False, labelleft=False)
    axes.set_ylabel(_title(one, "\n"), fontsize=8, rotation=0, ha="right", va="center")


def _draw_bars(axes: Any, said: dict[str, float], colour: str, *, named: bool) -> None:
    places = range(len(said))
    percents = [100 * probability for probability in said.values()]
    axes.barh(places, percents, color=colour, height=0.7)
    for place, value in zip(places, percents, strict=True):
        axes.annotate(f"{value:.0f}", (value, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set(xlim=(0, 118), ylim=(len(said) - 0.4, -0.6))
    axes.set_xticks([0, 50, 100], ["0", "50", "100"], fontsize=7, color=QUIET)
    axes.set_yticks(places, list(said) if named else [""] * len(said), fontsize=8)
    axes.grid(visible=False, axis="y")
