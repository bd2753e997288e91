"""The quadratic relative position bias of MHCA (DearKD, arXiv 2204.12997, eq. 2) and ways to initialise it.

Per head, ``alpha`` is the strength of the locality and ``delta`` the offset (rows, columns) that the head looks at.
For a query at p_i and a key at p_j of the patch grid, with offset d = p_j - p_i, the bias of the attention logit is

    b_ij = -alpha (|d|^2 - 2 delta . d) = -alpha |d - delta|^2 + alpha |delta|^2,

a Gaussian of variance 1 / (2 alpha) around ``delta`` after the softmax. The constant ``alpha |delta|^2`` cancels among
patches but not against the class token, whose bias is 0; so it must stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LEFTOVER_ALPHA = 0.02
"""Strength of the heads that `convit_init` leaves without a tap: near zero, where delta would have no gradient."""


def relative_bias(alpha: Tensor, delta: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
    """Return the bias of the attention logits, DearKD eq. 2.

    The quadratic form separates into a row and a column term, so no tensor of all offsets is built. It is computed in
    float32 or wider: none of the operations is on autocast's lists.

    Args:
        alpha: (H,).
        delta: (H, 2), rows then columns, in patches.
        grid: (h, w) patches; the token of patch (row, column) is ``num_prefix + row * w + column``.
        num_prefix: class and register tokens in front, whose rows and columns are exactly 0.

    Returns:
        (1, H, N, N) with N = num_prefix + h * w, indexed by query, then key.

    """
    dtype = torch.promote_types(alpha.dtype, torch.float32)
    alpha, delta = alpha.to(dtype), delta.to(dtype)
    rows = _axis_bias(alpha, delta[:, 0], grid[0])
    columns = _axis_bias(alpha, delta[:, 1], grid[1])
    patches = grid[0] * grid[1]
    bias = (rows[:, :, None, :, None] + columns[:, None, :, None, :]).reshape(1, -1, patches, patches)
    return F.pad(bias, (num_prefix, 0, num_prefix, 0))


def _axis_bias(alpha: Tensor, delta: Tensor, length: int) -> Tensor:
    """Return the term of one axis, (H, length, length)."""
    position = torch.arange(length, dtype=alpha.dtype, device=alpha.device)
    offset = position[None, :] - position[:, None]
    return -alpha[:, None, None] * (offset * offset - 2 * delta[:, None, None] * offset)


def disc_init(num_heads: int) -> tuple[Tensor, Tensor]:
    """Strength 1 and, as offsets, the points of the smallest centred square grid that are nearest to the origin.

    12 heads get a 4x4 grid without its corners, coordinates 1/2 and 3/2; 9 heads the integers of a 3x3 kernel.
    Returns alpha (H,) and delta (H, 2), as all initialisations do.
    """
    side = math.ceil(math.sqrt(num_heads))
    points = _grid(side, side, (side - 1) / 2, (side - 1) / 2)
    nearest = points.square().sum(1).sort(stable=True).indices[:num_heads]
    return torch.ones(num_heads), points[nearest.sort().values]


def rect_init(num_heads: int) -> tuple[Tensor, Tensor]:
    """Strength 1 and the centred rectangle that is nearest to a square: 3 rows and 4 columns for 12 heads."""
    rows, columns = _rectangle(num_heads)
    return torch.ones(num_heads), _grid(rows, columns, (rows - 1) / 2, (columns - 1) / 2)


def int_init(num_heads: int) -> tuple[Tensor, Tensor]:
    """Strength 1 and the rectangle of `rect_init` at integer offsets, such as {-1, 0, 1, 2}^2 for 16 heads.

    Only integer offsets become exact taps of a convolution as alpha grows; half-integer ones spread over neighbours.
    """
    rows, columns = _rectangle(num_heads)
    return torch.ones(num_heads), _grid(rows, columns, (rows - 1) // 2, (columns - 1) // 2)


def convit_init(num_heads: int) -> tuple[Tensor, Tensor]:
    """Strength 1 and the largest square kernel with at most H taps, as ConViT initialises (arXiv 2103.10697).

    Intermediates are in column-major order; the heads that are left over get `LEFTOVER_ALPHA` and no offset.
    """
    side = math.isqrt(num_heads)
    alpha = torch.full((num_heads,), LEFTOVER_ALPHA)
    delta = torch.zeros(num_heads, 2)
    alpha[: side * side] = 1.0
    delta[: side * side] = _grid(side, side, (side - 1) / 2, (side - 1) / 2).flip(1)
    return alpha, delta


def random_init(num_heads: int) -> tuple[Tensor, Tensor]:
    """Offsets from N(0, 2^2) and alpha = s^2 / 2 with s from N(1, 0.01^2), as Cordonnier et al. (arXiv 1911.03584)."""
    inverse_std = 1 + 0.01 * torch.randn(num_heads)
    return inverse_std.square() / 2, 2 * torch.randn(num_heads, 2)


RPE_INITS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "disc": disc_init,
    "rect": rect_init,
    "int": int_init,
    "convit": convit_init,
    "random": random_init,
}
"""Initialisations by the name that the config uses; the paper gives none."""


def _grid(rows: int, columns: int, row_origin: float, column_origin: float) -> Tensor:
    """Return the points of a grid in row-major order, (rows * columns, 2), relative to an origin."""
    return torch.cartesian_prod(torch.arange(rows) - row_origin, torch.arange(columns) - column_origin).float()


def _rectangle(num_heads: int) -> tuple[int, int]:
    """Return rows <= columns with rows * columns = H and rows as large as possible."""
    rows = max(side for side in range(1, math.isqrt(num_heads) + 1) if num_heads % side == 0)
    return rows, num_heads // rows
