"""Fixed two-dimensional sine-cosine positions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int], *, first: Literal["column", "row"]) -> Tensor:
    """Return the table (1 + rows * columns, width), float64: a row of zeros for the class token, then the patches.

    Half of the channels encode one axis by width / 4 sines and width / 4 cosines of frequencies 10000^(-k / (width/4)).
    ``first`` names the axis of the first half: the column in MAE, the row in MoCo-v3, so that their checkpoints cannot
    be exchanged without noticing.

    Raises `ValueError` if ``width`` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sincos_positions: width {width} is not a multiple of 4")
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    rows, columns = (axis.flatten() for axis in axes)
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    halves = []
    for axis in (columns, rows) if first == "column" else (rows, columns):
        angles = axis[:, None] * frequencies
        halves += [angles.sin(), angles.cos()]
    table = torch.cat(halves, dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), table])


def freeze_positions(vit: Any, *, first: Literal["column", "row"]) -> None:
    """Give a timm ViT with a class token the fixed table; fine-tuning trains it again."""
    table = sincos_positions(vit.embed_dim, vit.patch_embed.grid_size, first=first)
    with torch.no_grad():
        vit.pos_embed.copy_(table[None])
    vit.pos_embed.requires_grad_(False)
