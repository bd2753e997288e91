"""Scenes: scikit-learn's handwritten digits, each pasted on a crop of one of its two photographs; no download."""

from __future__ import annotations

import colorsys
import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitutor_core.data import keyed
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.images import array_split
from vitutor_core.data.types import Source, Split

Pixels = NDArray[np.uint8]
Draws = NDArray[np.float64]
_SEED = 0x5CE7E5


class Look(NamedTuple):
    """How a digit is pasted."""

    side: int = 16
    """Of an image, in pixels."""
    widths: tuple[int, int] = (12, 16)
    """From the smallest to the largest digit, its blank border included, in pixels."""
    turn: float = 10.0
    """The largest rotation either way, in degrees."""
    shade: float = 0.6
    """What is left of the photograph's brightness; digits are of full brightness, of any hue and saturation."""
    copies: tuple[int, int] = (2, 1)
    """Images of each digit, to train and to evaluate on; with one, the errors of evaluation are independent."""


@cache
def scene_digits_source() -> Source:
    """Draw all images, the same every time.

    The two splits share no digit and no pixel of a photograph: `digits_source` has the halves of the digits, and
    training has the left halves of the photographs.
    """
    photographs = load_photographs()
    middle = photographs.shape[2] // 2
    return paste(digits_source(), photographs[:, :, :middle], photographs[:, :, middle:], Look())


def load_photographs() -> Pixels:
    """Return scikit-learn's two photographs, (2, 427, 640, 3)."""
    from sklearn.datasets import load_sample_images

    return np.stack(load_sample_images().images)


def paste(digits: Source, left: Pixels, right: Pixels, look: Look) -> Source:
    """Return a source of ``digits``, those of the training split on ``left`` and of evaluation on ``right``.

    Photographs are (N, H, W, 3).
    """
    train, labels = _pasted(0, digits.train, left, look)
    evaluation, evaluation_labels = _pasted(1, digits.evaluation, right, look)
    return Source(
        name="scene_digits",
        class_names=digits.class_names,
        mean=_channels(train.mean((0, 1, 2))),
        std=_channels(train.std((0, 1, 2))),
        train=array_split(train, labels, "scene_digits, training half"),
        evaluation=array_split(evaluation, evaluation_labels, "scene_digits, evaluation half"),
    )


def _channels(values: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (round(value / 255, 4) for value in values.tolist())
    return red, green, blue


def _pasted(number: int, digits: Split, photographs: Pixels, look: Look) -> tuple[Pixels, NDArray[np.int64]]:
    """Return images (N, side, side, 3) of each digit in turn, and labels (N,), for split ``number``."""
    copies = look.copies[number]
    index = np.arange(copies * len(digits.labels))
    draws = keyed.uniform(_SEED, number, index[:, None], np.arange(10))
    inks = [digits.read(each).convert("L") for each in range(len(digits.labels))]
    crops = np.stack([np.asarray(crop(photographs, draw[:4], look.side)) for draw in draws])
    covers = np.stack(
        [cover(inks[each % len(inks)], draws[each, 4:8], look.side, look.widths, look.turn) for each in index.tolist()]
    )
    hues = [colorsys.hsv_to_rgb(hue, saturation, 1) for hue, saturation in draws[:, 8:].tolist()]
    dimmed = look.shade * crops
    pixels = dimmed + covers[..., None] * (255 * np.array(hues)[:, None, None] - dimmed)
    return np.rint(pixels).astype(np.uint8), np.tile(digits.labels, copies)


def crop(photographs: Pixels, draws: Draws, side: int) -> Image.Image:
    """Return a square of a photograph of one to three times ``side``, chosen by four draws and brought to ``side``."""
    photograph = photographs[int(draws[0] * len(photographs))]
    length = int(side * (1 + 2 * draws[1]))
    top, left = (int(draw * (room - length + 1)) for draw, room in zip(draws[2:], photograph.shape[:2], strict=True))
    square = Image.fromarray(np.ascontiguousarray(photograph[top : top + length, left : left + length]))
    return square.resize((side, side), Image.Resampling.BILINEAR)


def cover(digit: Image.Image, draws: Draws, side: int, widths: tuple[int, int], turn: float) -> NDArray[np.float64]:
    """Return how much a grey digit, scaled, turned and placed by four draws, covers each pixel of a scene.

    It is ``widths`` wide, as many small ones as large ones. The result is (side, side), from 0 to 1.
    """
    smallest, largest = widths
    width = round(smallest * (largest / smallest) ** draws[0])
    turned = digit.resize((width, width), Image.Resampling.BICUBIC).rotate(
        2 * turn * draws[1] - turn, Image.Resampling.BILINEAR, expand=True
    )
    # A digit that is turned may be larger than the scene, by its blank corners: these lie outside then.
    rooms = (side - turned.width, side - turned.height)
    place = [int(math.copysign(draw * (abs(room) + 1), room)) for draw, room in zip(draws[2:], rooms, strict=True)]
    sheet = Image.new("L", (side, side))
    sheet.paste(turned, (place[0], place[1]))
    return np.asarray(sheet, dtype=np.float64) / 255
