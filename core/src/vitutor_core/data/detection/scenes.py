"""Scenes: scikit-learn's handwritten digits on crops of its two photographs, with boxes and masks; no download."""

from __future__ import annotations

import colorsys
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
from vitutor_core.data.types import Split

SIDE = 96
"""Of a scene, in pixels."""
TRAIN, EVALUATION = 256, 128
"""Numbers of scenes."""
_SEED = 0x5CE7E
_DIGITS = 6
"""At most; those that would hide another one are left out."""
_HIDDEN = 0.25
"""The share of a digit that others may hide."""


@cache
def scenes_source() -> AnnotatedSource:
    """Draw all scenes, the same every time.

    The two splits share no digit and no pixel of a photograph: `digits_source` has the halves of the digits, and
    training has the left halves of the photographs.
    """
    digits, photographs = digits_source(), _photographs()
    middle = photographs.shape[2] // 2
    return AnnotatedSource(
        name="scenes",
        categories=tuple(Category(label + 1, name) for label, name in enumerate(digits.class_names)),
        train=_split(0, TRAIN, digits.train, photographs[:, :, :middle]),
        evaluation=_split(1, EVALUATION, digits.evaluation, photographs[:, :, middle:]),
    )


def _photographs() -> NDArray[np.uint8]:
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


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
    pixels = np.asarray(_background(photographs, draws[:4]), dtype=np.float64).copy()
    labels: list[int] = []
    masks: list[NDArray[np.bool_]] = []
    for number in range(2 + int(draws[4] * (_DIGITS - 1))):
        draw = keyed.uniform(*key, number + 1, np.arange(8))
        index = int(draw[0] * len(digits.labels))
        ink = _ink(digits.read(index).convert("L"), draw[1:5])
        mask = ink > 0.4
        if any((mask & other).sum() > _HIDDEN * other.sum() for other in masks):
            continue
        colour = 255 * np.array(colorsys.hsv_to_rgb(draw[5], 0.4 + 0.6 * draw[6], 0.5 + 0.5 * draw[7]))
        pixels += ink[:, :, None] * (colour - pixels)
        masks = [*(other & ~mask for other in masks), mask]
        labels.append(int(digits.labels[index]))
    objects = [_annotation(label, mask) for label, mask in zip(labels, masks, strict=True)]
    return np.rint(pixels).astype(np.uint8), objects


def _background(photographs: NDArray[np.uint8], draws: NDArray[np.float64]) -> Image.Image:
    """Return a square crop of one to three times the side of a scene, brought to that side."""
    photograph = photographs[int(draws[0] * len(photographs))]
    side = int(SIDE * (1 + 2 * draws[1]))
    top, left = (int(draw * (room - side + 1)) for draw, room in zip(draws[2:], photograph.shape, strict=False))
    crop = Image.fromarray(np.ascontiguousarray(photograph[top : top + side, left : left + side]))
    return crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def _ink(digit: Image.Image, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much a digit, scaled, turned and placed by four draws, covers each pixel of the scene: [0, 1]."""
    side = round(14 * (40 / 14) ** draws[0])  # 14 to 40 pixels, as many small ones as large ones
    turned = digit.resize((side, side), Image.Resampling.BICUBIC).rotate(
        60 * draws[1] - 30, Image.Resampling.BILINEAR, expand=True
    )
    sheet = Image.new("L", (SIDE, SIDE))
    sheet.paste(turned, (int(draws[2] * (SIDE - turned.width + 1)), int(draws[3] * (SIDE - turned.height + 1))))
    return np.asarray(sheet, dtype=np.float64) / 255


def _annotation(label: int, mask: NDArray[np.bool_]) -> Annotation:
    left, top, right, bottom = box_of(mask)
    return {
        "category_id": label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": encode(mask),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
