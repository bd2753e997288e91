"""The class token of crops of any size, from a plain ViT of one size."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor


def class_token(vit: Any, images: Tensor) -> Tensor:
    """Return the normalised class token (B, D) of images (B, 3, h, w) whose sides are multiples of the patch size.

    Positions are resampled to the grid of the images, by bicubic interpolation.
    """
    maps = vit.patch_embed.proj(images)
    rows, columns = maps.shape[-2:]
    positions = vit.pos_embed
    if (rows, columns) != tuple(vit.patch_embed.grid_size):
        positions = resample_abs_pos_embed(positions, [rows, columns], num_prefix_tokens=1)
    tokens = vit.patch_embed.norm(maps.flatten(2).transpose(1, 2))
    first = vit.cls_token.expand(len(tokens), -1, -1)
    normalised: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([first, tokens], dim=1) + positions)))
    return normalised[:, 0]
