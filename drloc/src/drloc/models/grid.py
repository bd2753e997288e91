"""The grids of a backbone: which modules make them, in which layout, and how they are pooled."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.errors import ConfigError

_BLOCK = re.compile(r"(.*\.)?blocks\.\d+")


def block_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the transformer blocks of a timm model; raises `ConfigError` if it has none."""
    names = tuple(name for name, _ in model.named_modules() if _BLOCK.fullmatch(name))
    if not names:
        raise ConfigError(f"method.grids=blocks: {type(model).__name__} has no transformer blocks; name its modules")
    return names


def as_grid(model: nn.Module, output: Tensor) -> Tensor:
    """Bring what a module of a timm model gave into the layout (B, d, H, W), without prefix tokens.

    Tokens (B, P + N, d) are put back on the model's grid, or on a square one; four axes are taken for the model's own
    order, channels last where ``model.output_fmt`` says so. Raises `ConfigError` for tokens that fit neither.
    """
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else output
    tokens = output[:, getattr(model, "num_prefix_tokens", 0) :]
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *_grid_size(model, tokens.shape[1]))


def _grid_size(model: Any, cells: int) -> tuple[int, int]:
    height, width = getattr(getattr(model, "patch_embed", None), "grid_size", None) or (0, 0)
    side = math.isqrt(cells)
    if height * width == cells:
        return height, width
    if side * side == cells:
        return side, side
    raise ConfigError(f"{type(model).__name__}: {cells} tokens are neither its grid nor a square one")


def pool_grid(grid: Tensor, *, max_side: int | None, kind: Literal["2x2", "3x3"] = "2x2") -> Tensor:
    """Average-pool (B, d, H, W) with stride 2 until no side is longer than ``max_side``; None: leave it.

    ``2x2`` is the paper's. ``3x3`` is the released code's: padded by 1, with a mean over what lies inside. The paper
    reports that the loss hardly converges on 14 x 14 grids; the released code leaves ViT's unpooled all the same.
    """
    while max_side is not None and max(grid.shape[-2:]) > max_side:
        if kind == "2x2":
            grid = F.avg_pool2d(grid, 2)
        else:
            grid = F.avg_pool2d(grid, 3, stride=2, padding=1, count_include_pad=False)
    return grid
