"""A contact sheet of generated images: the same classes from each set, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data.sources.images import read_image
from vitutor_core.report.drawing import Picture, save_picture
from vitutor_core.report.paper import PaperResults

_CLASSES, _IMAGES = 10, 8


def gallery_figure(paper: PaperResults, results: Path, folder: Path) -> Picture | None:
    """Draw the first images of the first classes of each set in ``paper.galleries`` that lies below ``results``.

    A set is a folder ``train/<class>/...``. A row is a class, in sorted order, and a column an image. None without
    sets.
    """
    sets = {title: results / path / "train" for path, title in paper.galleries.items()}
    sets = {title: path for title, path in sets.items() if path.is_dir()}
    if not sets:
        return None
    names = {title: sorted(entry.name for entry in path.iterdir())[:_CLASSES] for title, path in sets.items()}
    sheets = {title: _sheet([path / name for name in names[title]]) for title, path in sets.items()}

    def draw(figure: Any) -> None:
        for axes, (title, sheet) in zip(figure.subplots(1, len(sheets), squeeze=False)[0], sheets.items(), strict=True):
            axes.imshow(sheet, aspect="equal")
            axes.grid(visible=False)
            axes.set_title(title)
            height = sheet.shape[0] / len(names[title])
            axes.set_xticks([])
            axes.set_yticks([height * (index + 0.5) for index in range(len(names[title]))], names[title])

    return save_picture(
        folder / "generated-images",
        draw,
        title="Generated images",
        caption=f"The first images of the first {_CLASSES} classes of each set: none was selected.",
        alt=f"Contact sheets of generated images, a row per class: {', '.join(sheets)}.",
    )


def _sheet(classes: list[Path]) -> NDArray[np.uint8]:
    """Put the first images of each class into one picture, (H, W, 3)."""
    rows = []
    for folder in classes:
        files = sorted(folder.iterdir())[:_IMAGES]
        images = [np.asarray(read_image(file, str(file))) for file in files]
        images += [np.full_like(images[0], 255)] * (_IMAGES - len(images))
        # A grey line tells neighbours apart.
        framed = [np.pad(image, ((0, 1), (0, 1), (0, 0)), constant_values=128) for image in images]
        rows.append(np.concatenate(framed, axis=1))
    return np.concatenate(rows)
