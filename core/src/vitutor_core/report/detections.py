"""Images with the objects that are there above those that were found: boxes, masks and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitutor_core.data.detection.annotated import AnnotatedSource, Annotation, mask_of
from vitutor_core.report.drawing import COLOURS, Picture, save_picture

IMAGES = 6
"""How many images are drawn."""
_SURE = 0.5
"""The lowest score that is drawn."""


def draw_detections(source: AnnotatedSource, found: Mapping[int, Sequence[Annotation]], folder: Path) -> Picture:
    """Draw what is in evaluation images and what was found in them; ``found`` has COCO's results by image."""
    split, names = source.evaluation, {category.id: category.name for category in source.categories}
    rows = {
        "annotated": {number: split.annotations[number] for number in found},
        "found": {number: [one for one in objects if one["score"] >= _SURE] for number, objects in found.items()},
    }

    def draw(figure: Any) -> None:
        grid = figure.subplots(2, len(found), squeeze=False)
        for line, (title, objects_of) in zip(grid, rows.items(), strict=True):
            for axes, (number, objects) in zip(line, objects_of.items(), strict=True):
                axes.imshow(np.asarray(split.read(number)))
                axes.set(xticks=[], yticks=[])
                axes.grid(visible=False)
                for one in objects:
                    _draw_object(axes, one, names, list(names).index(one["category_id"]))
            line[0].set_ylabel(title)

    counts = {title: sum(map(len, objects.values())) for title, objects in rows.items()}
    return save_picture(
        folder / "detections",
        draw,
        title="Objects in evaluation images",
        caption=f"Above what is there, below what was found with a score of {_SURE:g} or more: the first images, "
        "without selection.",
        alt=f"{len(found)} images with boxes and masks: {counts['annotated']} objects, and {counts['found']} found.",
    )


def _draw_object(axes: Any, one: Annotation, names: Mapping[int, str], label: int) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Rectangle

    colour = COLOURS[1 + label % (len(COLOURS) - 1)]
    left, top, width, height = one["bbox"]
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), width, height, fill=False, edgecolor=colour, linewidth=1))
    rows, columns = axes.images[0].get_array().shape[:2]
    mask = mask_of(one["segmentation"], columns, rows, where="figure")
    axes.imshow(np.dstack([np.full((*mask.shape, 3), to_rgb(colour)), 0.4 * mask]))
    score = f" {one['score']:.2f}" if "score" in one else ""
    axes.annotate(f"{names[one['category_id']]}{score}", (left, top), color=colour, fontsize=6, va="bottom")
