"""Resizing: fixed geometry with PIL on the host, random crops as batched matrix products on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitutor_core.data.transfer import to_device
from vitutor_core.schema import Interpolation

Transform = Callable[[Image.Image], Tensor]

_PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resize_and_crop(image: Image.Image, shorter_side: int, crop: int, interpolation: Interpolation) -> Image.Image:
    """Resize so that the shorter side has ``shorter_side`` pixels, then cut the central ``crop`` x ``crop`` pixels."""
    width, height = image.size
    short = min(width, height)
    if short != shorter_side:
        width, height = (int(shorter_side * side / short) for side in (width, height))
        image = image.resize((width, height), _PIL_FILTERS[interpolation])
    if (width, height) == (crop, crop):
        return image
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def crop_and_resize(image: Image.Image, box: Sequence[int], side: int, interpolation: Interpolation) -> Image.Image:
    """Cut ``box`` (top, left, height, width) out of an image and resize it to ``side`` x ``side`` pixels."""
    top, left, height, width = box
    cut = image.crop((left, top, left + width, top + height))
    return cut if cut.size == (side, side) else cut.resize((side, side), _PIL_FILTERS[interpolation])


class EvalGeometry(Protocol):
    """How an image is brought to the size of a model: what a config's data section and a model's card say of it."""

    @property
    def image_size(self) -> int: ...
    @property
    def crop_ratio(self) -> float: ...
    @property
    def interpolation(self) -> Interpolation: ...


def eval_fit(config: EvalGeometry) -> partial[Image.Image]:
    """Return the geometry of evaluation: resize to ``image_size / crop_ratio``, then cut the centre out."""
    side = config.image_size
    return partial(
        resize_and_crop, shorter_side=round(side / config.crop_ratio), crop=side, interpolation=config.interpolation
    )


def eval_transform(data: EvalGeometry) -> Transform:
    """Return the evaluation transform, from a PIL image to (3, S, S) uint8."""
    fit = eval_fit(data)
    return lambda image: torch.from_numpy(np.array(fit(image))).permute(2, 0, 1)


def resized_crop(
    images: Tensor,
    boxes: NDArray[np.int64],
    size: int,
    interpolation: Interpolation,
    *,
    mirror: NDArray[np.bool_] | None = None,
) -> Tensor:
    """Cut one box per image and resize it with antialiasing, as PIL and torchvision do.

    Resampling is linear and separable, so each axis is a (size x S) matrix per image and a batch is two batched
    matrix products. The result is as exact as those products: float32, or TF32 where the caller allows it. (PIL rounds
    and clips to 8 bits between the two axes, which shows where bicubic weights overshoot black or white.)

    images: (B, C, S, S), any dtype. boxes: (B, 4), top, left, height and width in pixels.
    mirror: (B,), which images to flip horizontally; it costs nothing here.
    Returns (B, C, size, size) float32, not rounded and, with bicubic weights, not clipped.
    """
    batch, channels, side, _ = images.shape
    geometry = to_device(_geometry(boxes, size, mirror), images.device)
    rows, columns = _weights(geometry, side, size, interpolation).unbind(1)
    wide = torch.bmm(images.reshape(batch, channels * side, side).float(), columns.mT)
    return torch.matmul(rows[:, None], wide.view(batch, channels, side, size))


def _geometry(boxes: NDArray[np.int64], size: int, mirror: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Return (5, B, 2, 1, 1), for the rows and the columns of each box: first and last edge, narrowing, offset, step.

    Output pixel i lies at ``start + (i + 1/2) * length / size``. Where this shrinks, all distances are narrowed by the
    scale, which widens the filter: input position p and output i are ``|p * narrowing - (offset + i * step)|`` apart.
    """
    start, length = boxes.reshape(-1, 2, 2).transpose(1, 0, 2).astype(np.float64)
    origin, scale = start.copy(), length / size
    narrowing = np.minimum(1, 1 / scale)
    if mirror is not None:
        origin[:, 1] += mirror * length[:, 1]
        scale[:, 1] *= np.where(mirror, -1, 1)
    columns = [start, start + length, narrowing, origin * narrowing, scale * narrowing]
    return np.stack(columns).astype(np.float32)[..., None, None]


def _weights(geometry: Tensor, side: int, size: int, interpolation: Interpolation) -> Tensor:
    """Return the (B, 2, size, side) matrices, cut off at the borders of the box and normalised."""
    first, last, narrowing, offset, step = geometry.unbind(0)
    pixels = torch.arange(0.5, side, device=geometry.device)
    inside = (pixels > first) & (pixels < last)
    inputs = torch.where(inside, pixels * narrowing, torch.inf)
    outputs = offset + torch.arange(0.5, size, device=geometry.device)[:, None] * step
    distance = (inputs - outputs).abs_()
    weights = (1 - distance).clamp_(min=0) if interpolation == "bilinear" else _cubic(distance)
    return weights.div_(weights.sum(3, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic filter with a = -1/2, the one of PIL and of torch's antialiased bicubic, for x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
