"""Augmentation of whole batches on the device, with one set of random parameters per image.

The parameters are drawn on the host from the key of each view (`SampleKeys`), so the pixels of a view depend neither
on the batch around it nor on processes, and the device is never waited for. Each draw has a fixed number, so that
switching one operation on does not change another.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from vitutor_core.data.augment import boxes, pixelops, randaugment
from vitutor_core.data.augment.resample import resized_crop
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.data.transfer import to_device
from vitutor_core.schema import AugmentConfig, DataConfig

_FLIP_DRAW = 0
_CROP_DRAWS = 1  # to 22
_JITTER_DRAWS = 24
# 32 to 55 belong to random erasing.
_RAND_AUGMENT_DRAWS = 64

_JITTER = (pixelops.brightness, pixelops.contrast, pixelops.color)


class Augment:
    """The geometric and colour part of the augmentation: everything before normalisation.

    In this order: zero-pad and crop, or random resized crop; flip; RandAugment, or colour jitter in the fixed order
    brightness, contrast, saturation. As in timm, RandAugment replaces colour jitter. Pixels are whole numbers after
    every operation, as in a PIL pipeline.
    """

    def __init__(
        self,
        data: DataConfig,
        augment: AugmentConfig,
        mean: tuple[float, float, float],
        device: torch.device,
        *,
        crops: bool = True,
    ) -> None:
        """Prepare for images on ``device``; without ``crops``, the resized crop was made when they were decoded."""
        self.size = data.image_size
        self._crop_scale = augment.crop_scale if crops else None
        self._interpolation = data.interpolation
        self._config = augment
        self._rand_augment = None
        if augment.rand_augment is not None:
            fill = torch.tensor([round(255 * value) for value in mean], dtype=torch.float32, device=device)
            spec = randaugment.parse(augment.rand_augment)
            self._rand_augment = randaugment.RandAugment(spec, fill, _RAND_AUGMENT_DRAWS)

    def __call__(self, images: Tensor, keys: SampleKeys) -> Tensor:
        """Augment (B, 3, S, S) uint8 images to (B, 3, image_size, image_size), uint8 or whole float32 numbers."""
        return self._colours(self._geometry(images, keys), keys)

    def _geometry(self, images: Tensor, keys: SampleKeys) -> Tensor:
        config, device = self._config, images.device
        mirror = keys.uniform(_FLIP_DRAW, 1)[:, 0] < config.flip
        if self._crop_scale is not None:
            crops = draw_crops(keys, images.shape[-1], self._crop_scale, config.crop_aspect)
            return pixelops.round_to_pixels(resized_crop(images, crops, self.size, self._interpolation, mirror=mirror))
        if config.pad_crop:
            corners = (keys.uniform(_CROP_DRAWS, 2) * (2 * config.pad_crop + 1)).astype(np.int64)
            images = pad_crop(images, to_device(corners, device), config.pad_crop)
        return flip(images, to_device(mirror, device)) if config.flip else images

    def _colours(self, images: Tensor, keys: SampleKeys) -> Tensor:
        if self._rand_augment is not None:
            return self._rand_augment(images.float(), keys)
        if self._config.color_jitter:
            draws = keys.uniform(_JITTER_DRAWS, len(_JITTER))
            factors = to_device(jitter_factors(draws, self._config.color_jitter), images.device)
            images = images.float()
            for operation, column in zip(_JITTER, factors.unbind(1), strict=True):
                images = operation(images, column)
        return images


def draw_crops(
    keys: SampleKeys, sides: ArrayLike, scale: tuple[float, float], aspect: tuple[float, float]
) -> NDArray[np.int64]:
    """Return the boxes of the random resized crops of a batch; see `boxes.crop_boxes`."""
    return boxes.crop_boxes(keys.uniform(_CROP_DRAWS, boxes.NUM_DRAWS), sides, scale, aspect)


def pad_crop(images: Tensor, corners: Tensor, padding: int) -> Tensor:
    """Zero-pad by ``padding`` pixels on each side and cut the original size out again.

    images: (B, C, S, S). corners: (B, 2) int64, top and left edge in the padded image, from 0 to 2 * padding.
    """
    side = images.shape[-1]
    windows = F.pad(images, (padding,) * 4).unfold(2, side, 1).unfold(3, side, 1)
    batch = torch.arange(len(images), device=images.device)
    return windows[batch, :, corners[:, 0], corners[:, 1]]


def flip(images: Tensor, mirror: Tensor) -> Tensor:
    """Flip those of the (B, C, H, W) images horizontally that ``mirror``, (B,) bool, names."""
    batch = len(images)
    chosen = torch.arange(batch, device=images.device).add_(mirror, alpha=batch)
    return torch.cat([images, images.flip(-1)]).index_select(0, chosen)


def jitter_factors(draws: NDArray[np.float64], strength: float) -> NDArray[np.float32]:
    """Map draws from [0, 1) to factors uniform in [max(0, 1 - strength), 1 + strength], torchvision's range."""
    low, high = max(0.0, 1 - strength), 1 + strength
    return (low + (high - low) * draws).astype(np.float32)
