"""Resizing: fixed geometry with PIL on the host, random crops as batched matrix products on the device."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitutor_core.data.transfer import to_device
from vitutor_core.schema import DataConfig

Interpolation = Literal["bilinear", "bicubic"]

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


def eval_fit(config: DataConfig) -> Callable[[Image.Image], Image.Image]:
    """Return the geometry of evaluation: resize to ``image_size / crop_ratio``, then cut the centre out."""
    side = config.image_size
    return partial(
        resize_and_crop, shorter_side=round(side / config.crop_ratio), crop=side, interpolation=config.interpolation
    )


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
    matrix products. The result is as exact as those products: float32, or TF32 where the caller allows it.

    images: (B, C, S, S), any dtype. boxes: (B, 4), top, left, height and width in pixels.
    mirror: (B,), which images to flip horizontally; it costs nothing here.
    Returns (B, C, size, size) float32, not rounded and, with bicubic weights, not clipped.
    """
    batch, channels, side, _ = images.shape
    rows, columns = _weights(boxes, side, size, interpolation, mirror, images.device).unbind(1)
    wide = torch.bmm(images.reshape(batch, channels * side, side).float(), columns.mT)
    return torch.matmul(rows[:, None], wide.view(batch, channels, side, size))


def _weights(
    boxes: NDArray[np.int64],
    side: int,
    size: int,
    interpolation: Interpolation,
    mirror: NDArray[np.bool_] | None,
    device: torch.device,
) -> Tensor:
    """Return the (B, 2, size, side) matrices that resample the rows and the columns of each box to ``size`` pixels.

    Output pixel i lies at ``start + (i + 1/2) * length / size``; the filter is widened by the scale when shrinking,
    cut off at the borders of the box and normalised.
    """
    start, length = boxes.reshape(-1, 2, 2).transpose(1, 0, 2).astype(np.float64)
    origin, slope = start.copy(), length / size
    narrow = np.minimum(1, 1 / slope)
    if mirror is not None:
        origin[:, 1] += mirror * length[:, 1]
        slope[:, 1] *= np.where(mirror, -1, 1)
    parameters = np.stack([start, start + length, narrow, origin * narrow, slope * narrow], axis=0)
    on_device = to_device(parameters.astype(np.float32)[..., None, None], device)
    first, last, narrowing, offset, step = on_device.unbind(0)
    pixels = torch.arange(0.5, side, device=device)
    inside = (pixels > first) & (pixels < last)
    inputs = torch.where(inside, pixels * narrowing, torch.inf)
    outputs = torch.arange(0.5, size, device=device)[:, None] * step + offset
    distance = (inputs - outputs).abs_()
    weights = (1 - distance).clamp_(min=0) if interpolation == "bilinear" else _cubic(distance)
    return weights.div_(weights.sum(3, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic filter with a = -1/2, the one of PIL and of torch's antialiased bicubic, for x >= 0."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
