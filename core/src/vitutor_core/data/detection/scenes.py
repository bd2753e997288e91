"""Scenes: scikit-learn's handwritten digits on crops of its two photographs, with boxes and masks; no download."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data import keyed
from vitutor_core.data.detection.annotated import (
    AnnotatedSource,
    AnnotatedSplit,
    Annotation,
    Category,
    box_of,
    encode,
)
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.images import array_split
from vitutor_core.data.sources.scenes import cover, crop, load_photographs
from vitutor_core.data.types import Split

SIDE = 96
"""Of a scene, in pixels."""
TRAIN, EVALUATION = 256, 128
"""Numbers of scenes."""
_SEED = 0x5CE7E
_DIGITS = 6
"""At most; those that would hide another one are left out."""
_WIDTHS, _TURN = (14, 40), 30
"""Of digits, in pixels and degrees."""
_HIDDEN = 0.25
"""The share of a digit that others may hide."""


@cache
def scenes_source() -> AnnotatedSource:
    """Draw all scenes, the same every time.

    The two splits share no digit and no pixel of a photograph: `digits_source` has the halves of the digits, and
    training has the left halves of the photographs.
    """
    digits, photographs = digits_source(), load_photographs()
    middle = photographs.shape[2] // 2
    return AnnotatedSource(
        name="scenes",
        categories=tuple(Category(label + 1, name) for label, name in enumerate(digits.class_names)),
        train=_split(0, TRAIN, digits.train, photographs[:, :, :middle]),
        evaluation=_split(1, EVALUATION, digits.evaluation, photographs[:, :, middle:]),
    )


def _split(number: int, count: int, digits: Split, photographs: NDArray[np.uint8]) -> AnnotatedSplit:
    scenes, annotations = [], []
    for index in range(count):
        pixels, objects = _scene((_SEED, number, index), digits, photographs)
        scenes.append(pixels)
        annotations.append(objects)
    name = f"scenes, {('training', 'evaluation')[number]} half"
    images = array_split(np.stack(scenes), np.zeros(count, dtype=np.int64), name)
    return AnnotatedSplit(images, np.full((count, 2), SIDE), tuple(annotations))


def _scene(
    key: tuple[int, int, int], digits: Split, photographs: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], list[Annotation]]:
    draws = keyed.uniform(*key, np.arange(5))
    pixels = np.asarray(crop(photographs, draws[:4], SIDE), dtype=np.float64).copy()
    labels: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    for number in range(2 + int(draws[4] * (_DIGITS - 1))):
        draw = keyed.uniform(*key, number + 1, np.arange(8))
        index = int(draw[0] * len(digits.labels))
        ink = cover(digits.read(index).convert("L"), draw[1:5], SIDE, _WIDTHS, _TURN)
        mask = ink > 0.4
        if any((mask & other).sum() > _HIDDEN * other.sum() for other in masks):
            continue
        colour = 255 * np.array(colorsys.hsv_to_rgb(draw[5], 0.4 + 0.6 * draw[6], 0.5 + 0.5 * draw[7]))
        pixels += ink[:, :, None] * (colour - pixels)
        masks = [*(other & ~mask for other in masks), mask]
        labels.append(int(digits.labels[index]))
    objects = [_annotation(label, mask) for label, mask in zip(labels, masks, strict=True)]
    return np.rint(pixels).astype(np.uint8), objects


def _annotation(label: int, mask: NDArray[np.bool_]) -> Annotation:
    left, top, right, bottom = box_of(mask)
    return {
        "category_id": label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": encode(mask),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
