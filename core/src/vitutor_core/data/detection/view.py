"""What of an annotated image is seen, and how large: large-scale jitter (arXiv 2012.07177) and the view for evaluation.

An image is enlarged by a ratio, a square is cut out, and what lies beyond the image is filled with the mean colour.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitutor_core.data.sampler import SampleKeys


class View(NamedTuple):
    """A square of an image that was resized to ``size`` (width, height): it begins at ``left``, ``top`` of that."""

    size: tuple[int, int]
    left: int = 0
    top: int = 0
    flip: bool = False


def whole(width: int, height: int, side: int) -> View:
    """Return the view in which the longer side of the image fills that of the square."""
    return _enlarged(width, height, side / max(width, height))


def draw_views(
    keys: SampleKeys, sizes: NDArray[np.int64], side: int, scale: tuple[float, float], flip: float
) -> list[View]:
    """Draw a view of each image, of ``sizes`` (B, 2): its scale relative to `whole`, its place, and whether to flip."""
    views = []
    for (width, height), draw in zip(sizes.tolist(), keys.uniform(0, 4), strict=True):
        ratio = (scale[0] + draw[0] * (scale[1] - scale[0])) * side / max(width, height)
        view = _enlarged(width, height, ratio)
        left, top = (int(at * (max(length - side, 0) + 1)) for at, length in zip(draw[1:3], view.size, strict=True))
        views.append(view._replace(left=left, top=top, flip=bool(draw[3] < flip)))
    return views


def see(image: Image.Image, view: View, side: int, fill: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Return the square of an image as (side, side, 3)."""
    width, height = _seen(view, side)
    across, down = image.width / view.size[0], image.height / view.size[1]
    box = (view.left * across, view.top * down, (view.left + width) * across, (view.top + height) * down)
    seen = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
    return _pasted(seen, np.full((side, side, 3), fill, dtype=np.uint8), view)


def see_mask(mask: NDArray[np.bool_], view: View, side: int) -> NDArray[np.bool_]:
    """Return the square of an image's mask (H, W), by the nearest pixels: (side, side)."""
    width, height = _seen(view, side)
    columns = (view.left + np.arange(width) + 0.5) * mask.shape[1] / view.size[0]
    rows = (view.top + np.arange(height) + 0.5) * mask.shape[0] / view.size[1]
    seen = mask[np.ix_(rows.astype(np.int64), columns.astype(np.int64))]
    return _pasted(seen, np.zeros((side, side), dtype=np.bool_), view)


def _pasted(seen: NDArray[Any], square: NDArray[Any], view: View) -> NDArray[Any]:
    square[: seen.shape[0], : seen.shape[1]] = seen[:, ::-1] if view.flip else seen
    return square


def _enlarged(width: int, height: int, ratio: float) -> View:
    return View((max(round(width * ratio), 1), max(round(height * ratio), 1)))


def _seen(view: View, side: int) -> tuple[int, int]:
    """Return width and height of the part of the square that shows the image."""
    return min(view.size[0] - view.left, side), min(view.size[1] - view.top, side)
