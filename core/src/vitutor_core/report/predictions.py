"""The classes that images show, as lines of text or as a table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vitutor_core.files import write_csv
from vitutor_core.terminal import printable

if TYPE_CHECKING:
    from vitutor_core.evaluate.predict import Prediction


def prediction_line(prediction: Prediction) -> str:
    """Return an image and its classes as a line of text."""
    classes = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in prediction.classes)
    return printable(f"{prediction.path}: {classes}")


def write_predictions(table: Path, found: Iterable[Prediction], top: int) -> None:
    """Write a line for each image, with ``top`` classes and their probabilities."""
    lines = [["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability"))]]
    for prediction in found:
        name = os.fsencode(prediction.path).decode(errors="backslashreplace")
        classes = (value for name, share in prediction.classes for value in (name, f"{share:.6g}"))
        lines.append([name, *classes])
    write_csv(table, lines)
