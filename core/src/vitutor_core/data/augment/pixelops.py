"""PIL's 8-bit image operations on batches, with one parameter per image.

Images are (B, 3, H, W) float32 tensors that hold whole numbers from 0 to 255. All results are again whole numbers and
equal PIL's, except that `affine` may differ from PIL's double precision by one grey level.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Far above the rounding error of float32 sums of pixels, far below one grey level: results that are whole numbers, or
# exact halves, in real arithmetic must not depend on the order of summation.
ROUNDING_MARGIN = 1e-3


def round_to_pixels(images: Tensor) -> Tensor:
    """Round, halves upwards, and clip to 8 bits; in place."""
    return images.add_(0.5 + ROUNDING_MARGIN).floor_().clamp_(0, 255)


def grey(images: Tensor) -> Tensor:
    """Return PIL's luma, (B, 1, H, W). All sums stay below 2**24, so float32 is exact."""
    red, green, blue = images[:, :, None].unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768).div_(65536).floor_()


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with black; ``factors`` (B,) float32, 1 leaves the image as it is."""
    return _blend(torch.zeros_like(images[:, :1, :1, :1]), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the mean luma of the image; ``factors`` (B,)."""
    mean = grey(images).mean((1, 2, 3), keepdim=True, dtype=torch.float64)
    return _blend(mean.add_(0.5).floor_().float(), images, factors)


def color(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the grey image: PIL's Color, torchvision's saturation; ``factors`` (B,)."""
    return _blend(grey(images), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Blend with the image smoothed by PIL's 3 x 3 SMOOTH kernel, whose border pixels are copied; ``factors`` (B,)."""
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = round_to_pixels(box.add_(images[:, :, 1:-1, 1:-1], alpha=4).div_(13))
    return _blend(smooth, images, factors)


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Inter- or extrapolate from ``degenerate`` by ``factors``; PIL truncates here instead of rounding."""
    mixed = (images - degenerate).mul_(factors[:, None, None, None]).add_(degenerate)
    return mixed.clamp_(0, 255).floor_()


def autocontrast_tables(images: Tensor) -> Tensor:
    """Return the (B, 3, 256) look-up tables that stretch each channel to the full range."""
    low, high = (end.double()[..., None] for end in (images.amin((2, 3)), images.amax((2, 3))))
    # Not `255 / x`: torch computes that as `255 * (1 / x)`, and PIL truncates the product.
    scale = torch.full_like(low, 255).div_(high - low)
    levels = torch.arange(256, device=images.device, dtype=torch.float64)
    stretched = (levels * scale + -low * scale).clamp_(0, 255).floor_()
    return torch.where(high > low, stretched, levels).float()


def equalize_tables(images: Tensor) -> Tensor:
    """Return the (B, 3, 256) look-up tables that flatten the histogram of each channel."""
    pixels = _integers(images)
    counts = torch.zeros(*pixels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = (below + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    return torch.where(step > 0, table, torch.arange(256, device=images.device)).float()


def look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each pixel by its entry of ``tables``, (B, 3, 256) float32."""
    return tables.gather(2, _integers(images)).view_as(images)


def _integers(images: Tensor) -> Tensor:
    # On a CPU, float32 to int32 to int64 takes half the time of the direct way.
    return images.flatten(2).int().long()


def affine(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Resample bilinearly; what lies outside of the image becomes ``fill``.

    matrices: (B, 2, 3), from output to input positions, in coordinates that run from -1 to 1 between the outer edges
    of the (square) image. fill: (3,) grey levels. Like PIL, neighbours beyond the edge repeat the edge.
    """
    side = images.shape[-1]
    axis = torch.arange(1, 2 * side, 2, device=images.device) / side - 1
    x_weight, y_weight, shift = matrices[..., None, None].unbind(2)
    positions = x_weight * axis + (y_weight * axis[:, None] + shift)
    sampled = F.grid_sample(images, positions.permute(0, 2, 3, 1), padding_mode="border", align_corners=False)
    # 1 where the position lies within (-1, 1) on both axes, else 0; several times faster than comparing and `where`.
    inside = (1 - torch.maximum(*positions.abs_().unbind(1))).ceil_().clamp_(min=0)
    return torch.lerp(fill[:, None, None], sampled.add_(ROUNDING_MARGIN).floor_(), inside[:, None])
