"""Random boxes in images, drawn on the host: those of the random resized crop and of random erasing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TRIES = 10
NUM_DRAWS = 2 * TRIES + 2


def random_boxes(
    draws: NDArray[np.float64],
    sides: ArrayLike,
    *,
    margin: int = 0,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Choose boxes as torchvision and timm do: the first of ten tries that fits counts.

    A try draws the area (share of the image) uniformly from ``area`` and width / height log-uniformly from ``aspect``;
    it fits if both edges are at least ``margin`` pixels shorter than the image's. All positions inside the image are
    equally likely.

    draws: (B, 22) from [0, 1): ten areas, ten aspects, top, left. sides: height and width of the images in pixels,
    (B, 2), or one number for square images of one size.
    Returns the boxes (B, 4), top, left, height and width, and which of them had a try that fits, (B,).
    """
    sides = np.broadcast_to(sides, (len(draws), 2))
    areas = (area[0] + (area[1] - area[0]) * draws[:, :TRIES]) * sides.prod(1)[:, None]
    low, high = np.log(aspect)
    aspects = np.exp(low + (high - low) * draws[:, TRIES : 2 * TRIES])
    edges = np.rint(np.sqrt([areas / aspects, areas * aspects])).astype(np.int64)
    fits: NDArray[np.bool_] = np.all((edges > 0) & (edges <= sides.T[:, :, None] - margin), axis=0)
    chosen = edges[:, np.arange(len(draws)), fits.argmax(1)].T
    corners = (draws[:, 2 * TRIES :] * (sides - chosen + 1)).astype(np.int64)
    return np.concatenate([corners, chosen], axis=1), np.asarray(fits.any(1))


def crop_boxes(
    draws: NDArray[np.float64], sides: ArrayLike, area: tuple[float, float], aspect: tuple[float, float]
) -> NDArray[np.int64]:
    """Choose the boxes of the random resized crop (Szegedy et al. 2015): (B, 4), top, left, height and width.

    Where no try fits, it is the largest central box of an allowed aspect. For ``sides`` see `random_boxes`.
    """
    boxes, found = random_boxes(draws, sides, area=area, aspect=aspect)
    sides = np.broadcast_to(sides, boxes[:, :2].shape)[~found]
    central = np.rint(np.minimum(sides, sides[:, ::-1] * [1 / aspect[0], aspect[1]])).astype(np.int64)
    boxes[~found] = np.concatenate([(sides - central) // 2, central], axis=1)
    return boxes
