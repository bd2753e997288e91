"""L_MAE: reconstruction of the removed patches (MAE, arXiv 2111.06377; MAE-Lite, arXiv 2205.14443, section 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut (B, C, H, W) images into (B, N, patch * patch * C) patches in row-major order.

    Within a patch, the values are ordered by row, column, channel; the channel is the fastest.
    """
    batch, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    tiles = images.reshape(batch, channels, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
    return tiles.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """Put (B, N, patch * patch * C) patches of a ``grid`` of rows and columns back together: (B, C, H, W)."""
    batch, rows, columns = patches.shape[0], *grid
    tiles = patches.reshape(batch, rows, columns, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return tiles.reshape(batch, -1, rows * patch, columns * patch)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each patch, (B, N, 1): unbiased variance plus 1e-6, as released."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def pixel_loss(predictions: Tensor, patches: Tensor, removed: Tensor, *, normalise: bool = True) -> Tensor:
    """Return the mean squared error per patch, averaged over the removed patches.

    Args:
        predictions: (B, N, P), what the decoder predicts for every patch.
        patches: (B, N, P), `patchify` of the images.
        removed: (B, N), 1 where the encoder did not see the patch, else 0.
        normalise: compare with patches of mean 0 and variance 1, each by its own statistics.

    Raises:
        ValueError: the shapes do not fit.

    """
    if predictions.shape != patches.shape or removed.shape != patches.shape[:2]:
        shapes = f"{tuple(predictions.shape)}, {tuple(patches.shape)} and {tuple(removed.shape)}"
        raise ValueError(f"pixel_loss: predictions, patches and removed have shapes {shapes}")
    if normalise:
        mean, deviation = patch_statistics(patches)
        patches = (patches - mean) / deviation
    errors = torch.square(predictions - patches).mean(-1)
    return (errors * removed).sum() / removed.sum()
