"""The views of MoCo-v3 and DINO, cut on the device from a batch of images.

The loaders give one view of an image, so a batch brings images without augmentation and the views are made here, from
the same operations. Random numbers come from torch's generator, which the loop seeds in every step, so that a
resumed run sees the same views. Crops are cut from the batch's images: at their own size where these are not resized,
from images that were brought to the training size before, where they are.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from mae_lite_distill.config import DINOConfig, MoCoConfig, ViewConfig
from vitutor_core.data.augment import boxes, pixelops
from vitutor_core.data.augment.resample import resized_crop
from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import DataInfo

_ASPECT = (3 / 4, 4 / 3)
ViewConfigT = TypeVar("ViewConfigT", bound=ViewConfig)


class _Views(Generic[ViewConfigT]):
    """Augmented views of each image. In the released order: crop, jitter, blur, grey, flip, solarise."""

    def __init__(self, config: ViewConfigT, info: DataInfo) -> None:
        self._config = config
        self._mean = torch.tensor(info.mean).mul(255).view(1, -1, 1, 1)
        self._std = torch.tensor(info.std).mul(255).view(1, -1, 1, 1)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return views of the normalised images (B, 3, S, S), normalised again."""
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        mean, std = self._mean, self._std
        pixels = pixelops.round_to_pixels(images * std + mean)
        return tuple((view - mean) / std for view in self._cut(pixels))

    def _cut(self, pixels: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def _view(
        self, pixels: Tensor, area: tuple[float, float], *, blur: float, solarise: float = 0.0, size: int | None = None
    ) -> Tensor:
        config, batch, side = self._config, len(pixels), pixels.shape[-1]
        # Drawn on the host, since the crop's geometry is computed there.
        draws = torch.rand(batch, boxes.NUM_DRAWS + 11, dtype=torch.float64)
        crops = boxes.crop_boxes(draws[:, 11:].numpy(), side, area, _ASPECT)
        mirror = (draws[:, 0] < config.flip).numpy()
        x = pixelops.round_to_pixels(resized_crop(pixels, crops, size or side, "bilinear", mirror=mirror))
        chance = to_device(draws.float().numpy(), x.device)
        x = _where(chance[:, 1] < config.jitter_probability, self._jitter(x, chance[:, 2:6]), x)
        if blur:
            x = _where(chance[:, 6] < blur, gaussian_blur(x, 0.1 + 1.9 * chance[:, 7]), x)
        x = _where(chance[:, 8] < config.grey, pixelops.grey(x).expand_as(x), x)
        return _where(chance[:, 9] < solarise, torch.where(x < 128, x, 255 - x), x)

    def _jitter(self, x: Tensor, draws: Tensor) -> Tensor:
        """Jitter in a fixed order; torchvision shuffles brightness, contrast, saturation and hue."""
        operations = (pixelops.brightness, pixelops.contrast, pixelops.color)
        for index, operation in enumerate(operations):
            x = operation(x, 1 + self._config.jitter[index] * (2 * draws[:, index] - 1))
        return shift_hue(x, self._config.jitter[3] * (2 * draws[:, 3] - 1))


class TwoViews(_Views[MoCoConfig]):
    """The two views (B, 3, S, S) of MoCo-v3."""

    def _cut(self, pixels: Tensor) -> list[Tensor]:
        area, (first, second) = self._config.crop_scale, self._config.blur
        return [
            self._view(pixels, area, blur=first),
            self._view(pixels, area, blur=second, solarise=self._config.solarise),
        ]


class MultiCrop(_Views[DINOConfig]):
    """The crops of DINO: two global ones (B, 3, S, S), then local ones (B, 3, s, s)."""

    def _cut(self, pixels: Tensor) -> list[Tensor]:
        config = self._config
        first, second, local = config.blur
        return [
            self._view(pixels, config.crop_scale, blur=first),
            self._view(pixels, config.crop_scale, blur=second, solarise=config.solarise),
            *(
                self._view(pixels, config.local_scale, blur=local, size=config.local_size)
                for _ in range(config.local_crops)
            ),
        ]


def _where(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], changed, images)


def gaussian_blur(images: Tensor, sigmas: Tensor) -> Tensor:
    """Blur (B, C, H, W) images with a Gaussian of ``sigmas`` (B,) pixels; the border is repeated.

    The kernel is cut off at three of the largest sigmas that are drawn, 2 pixels.
    """
    batch, channels, height, width = images.shape
    offsets = torch.arange(-6, 7, device=images.device)
    kernels = torch.exp(-0.5 * (offsets / sigmas[:, None]) ** 2)
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    x = F.pad(images, (6,) * 4, mode="replicate").view(1, batch * channels, height + 12, width + 12)
    x = F.conv2d(x, kernels[:, None, None], groups=batch * channels)
    x = F.conv2d(x, kernels[:, None, :, None], groups=batch * channels)
    return pixelops.round_to_pixels(x.view(batch, channels, height, width))


def shift_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Turn the hue of (B, 3, H, W) images by ``shifts`` (B,), in turns; value and saturation in HSV are kept."""
    value, low = images.amax(1), images.amin(1)
    span = (value - low).clamp(min=1e-6)
    red, green, blue = images.unbind(1)
    of_green, of_blue = 2 + (blue - red) / span, 4 + (red - green) / span
    hue = torch.where(value == red, (green - blue) / span, torch.where(value == green, of_green, of_blue))
    hue = hue + 6 * shifts[:, None, None]
    # Each channel is a trapezium over the circle of hues, 120 degrees from the next.
    channels = [
        value - (value - low) * torch.minimum(index, 4 - index).clamp(0, 1)
        for index in ((hue + offset) % 6 for offset in (5, 3, 1))
    ]
    return pixelops.round_to_pixels(torch.stack(channels, dim=1))
