"""Random boxes in square images, drawn on the host: those of the random resized crop and of random erasing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TRIES = 10
NUM_DRAWS = 2 * TRIES + 2


def random_boxes(
    draws: NDArray[np.float64], side: int, *, longest: int, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose boxes as torchvision and timm do: the first of ten tries that fits counts.

    A try draws the area (share of the image) uniformly from ``area`` and width / height log-uniformly from ``aspect``;
    it fits if no edge is longer than ``longest``. All positions inside the image are equally likely.

    draws: (B, 22) from [0, 1): ten areas, ten aspects, top, left. ``side``: of the image, in pixels.
    Returns the boxes (B, 4), top, left, height and width, and which of them had a try that fits, (B,).
    """
    areas = (area[0] + (area[1] - area[0]) * draws[:, :TRIES]) * side**2
    low, high = np.log(aspect)
    aspects = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    edges = np.rint(np.sqrt([areas / aspects, areas * aspects])).astype(np.int64)
    fits: NDArray[np.bool_] = np.all((edges > 0) & (edges <= longest), axis=0)
    chosen = edges[:, np.arange(len(draws)), fits.argmax(1)].T
    corners = (draws[:, 2 * TRIES :] * (side - chosen + 1)).astype(np.int64)
    return np.concatenate([corners, chosen], axis=1), np.asarray(fits.any(1))


def crop_boxes(
    draws: NDArray[np.float64], side: int, area: tuple[float, float], aspect: tuple[float, float]
) -> NDArray[np.int64]:
    """Choose the boxes of the random resized crop (Szegedy et al. 2015): (B, 4), top, left, height and width.

    Where no try fits, it is the largest central box of an allowed aspect.
    """
    boxes, found = random_boxes(draws, side, longest=side, area=area, aspect=aspect)
    # A square image has aspect 1, so this is the whole image unless the range excludes 1.
    central = np.rint([side * min(1.0, 1 / aspect[0]), side * min(1.0, aspect[1])]).astype(np.int64)
    boxes[~found] = np.concatenate([(side - central) // 2, central])
    return boxes
