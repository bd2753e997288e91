"""Accuracy class by class: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.evaluate.accuracy import Answers


def confusion_matrix(answers: Answers, num_classes: int) -> NDArray[np.int64]:
    """Count the images of class i that are taken for class j: (K, K)."""
    pairs = answers.wanted.numpy() * num_classes + answers.given.numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def by_class(answers: Answers, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a model's answers say of each class, as JSON values; shares are in percent.

    ``balanced_top1`` is the mean of the accuracies of the classes that have images. ``classes`` has for each class its
    number of ``images``, its ``top1`` (recall) and its ``precision``; null, where there is nothing to divide by.
    ``confusion`` is the matrix, a row for each true class.
    """
    matrix = confusion_matrix(answers, len(class_names))
    images, given, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    classes = [
        {
            "class": name,
            "images": int(images[index]),
            "top1": _percent(right[index], images[index]),
            "precision": _percent(right[index], given[index]),
        }
        for index, name in enumerate(class_names)
    ]
    known = images > 0
    balanced = float(100 * (right[known] / images[known]).mean())
    return {"balanced_top1": balanced, "classes": classes, "confusion": matrix.tolist()}


def _percent(part: np.int64, whole: np.int64) -> float | None:
    return float(100 * part / whole) if whole else None
