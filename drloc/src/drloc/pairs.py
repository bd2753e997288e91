"""Random pairs of grid cells, their tokens and their offsets: whole batches at once, on the device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Unit = Literal["k", "k-1", "cells"]


class Pairs(NamedTuple):
    """Cells of the two endpoints of each pair, the last axis: ``rows`` and ``columns``, (B, m, 2) int64 each."""

    rows: Tensor
    columns: Tensor


def sample_pairs(
    batch: int, grid: tuple[int, int], m: int, *, device: torch.device, generator: torch.Generator | None = None
) -> Pairs:
    """Draw m pairs for each of ``batch`` images, on ``device``, with its own generator or torch's.

    Both endpoints are uniform over the H x W cells, independent and with replacement, so that a pair is one cell twice
    with probability 1 / (H W); as in the released code, every image has pairs of its own.
    """
    height, width = grid
    cells = torch.randint(height * width, (batch, m, 2), device=device, generator=generator)
    return Pairs(cells // width, cells % width)


def pair_tokens(grid: Tensor, pairs: Pairs) -> Tensor:
    """Concatenate the tokens of each pair: a grid (B, d, H, W) gives (B, m, 2d), the first endpoint in front.

    The released code takes H for the stride of a row and so reads wrong tokens of grids that are not square.
    """
    batch, dim, height, width = grid.shape
    tokens = grid.flatten(2).transpose(1, 2).reshape(-1, dim)
    first = torch.arange(0, batch * height * width, height * width, device=grid.device)
    index = first[:, None, None] + pairs.rows * width + pairs.columns
    # Whole rows of a table: faster in both directions than a gather by element, and deterministic on GPUs too.
    return F.embedding(index, tokens).flatten(2)


def offsets(pairs: Pairs, *, signed: bool = False) -> Tensor:
    """Return the offset of each pair in cells, (B, m, 2) int64: rows, then columns, first minus second endpoint."""
    both = torch.stack([pairs.rows[..., 0] - pairs.rows[..., 1], pairs.columns[..., 0] - pairs.columns[..., 1]], -1)
    return both if signed else both.abs()


class Scale(NamedTuple):
    """How offsets in cells become targets: (offset + shift) / divisor, by axis, rows first."""

    shift: tuple[int, int]
    divisor: tuple[int, int]

    def targets(self, cells: Tensor) -> Tensor:
        """Map offsets (B, m, 2) int64 to float32 targets of the same shape."""
        axes = [(cells[..., axis] + self.shift[axis]) / self.divisor[axis] for axis in (0, 1)]
        return torch.stack(axes, dim=-1)

    def in_cells(self, errors: Tensor) -> Tensor:
        """Map differences of targets (B, m, 2) to cells."""
        return torch.stack([errors[..., axis] * self.divisor[axis] for axis in (0, 1)], dim=-1)


def scale(grid: tuple[int, int], *, unit: Unit, signed: bool) -> Scale:
    """Return the scale of a unit on a grid of H x W cells.

    ``k``: over the side (paper, section 3; signed in [-1, 1] as in its draft). ``cells``: as they are, signed shifted
    by k - 1 to begin at 0 (the released code). ``k-1``: that, over its largest value (an unused option there).
    """
    height, width = grid
    shift = (height - 1, width - 1) if signed and unit != "k" else (0, 0)
    if unit == "k":
        return Scale(shift, grid)
    if unit == "cells":
        return Scale(shift, (1, 1))
    reach = 2 if signed else 1
    return Scale(shift, (reach * (height - 1), reach * (width - 1)))
