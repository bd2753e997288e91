"""CONV, the generalised convolution that stands for multi-head attention in the agent (Bootstrapping ViTs, eq. 3-5)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Window(NamedTuple):
    """The k x k window whose first H positions, in row-major order, are the taps of H heads.

    ``rows`` of its ``side`` rows hold taps; ``top`` and ``left`` are the distances of the first position to the centre.
    """

    side: int
    rows: int
    top: int
    left: int

    @property
    def bottom(self) -> int:
        return self.rows - 1 - self.top

    @property
    def right(self) -> int:
        return self.side - 1 - self.left


def head_window(num_heads: int) -> Window:
    """Return the window of ``num_heads`` taps, k = ceil(sqrt(H)).

    9 heads fill a 3x3 kernel; 6 heads fill its upper two rows, so the bottom row is missing. The released code refuses
    even k; here the window of an even k has one position more below and to the right.
    """
    side = math.isqrt(num_heads - 1) + 1
    before = (side - 1) // 2
    return Window(side, math.ceil(num_heads / side), before, before)


class Conv(nn.Module):
    """CONV with weights of its own: ``y = sum_h Phi_h x W_h + b``, eq. 3 with Phi_h of eq. 4.

    Phi_h moves the value at offset h to each position and has zeros beyond the border, so this is a convolution of
    stride 1 and zero padding. ``weight`` is (d_out, d_in, H), ``bias`` (d_out,). The released code multiplies by dense
    Phi of n x (H n) entries; the result is the same.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, dim, num_heads))
        self.bias = nn.Parameter(torch.zeros(dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, d, h, w) to the same shape."""
        return tapped_conv(x, self.weight, self.bias)


def tapped_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve (B, d_in, h, w) with one matrix per tap, ``weight`` (d_out, d_in, H)."""
    window = head_window(weight.shape[2])
    missing = window.rows * window.side - weight.shape[2]
    if missing:
        weight = F.pad(weight, (0, missing))
    kernel = weight.reshape(*weight.shape[:2], window.rows, window.side)
    if (window.top, window.left) == (window.bottom, window.right):
        return F.conv2d(x, kernel, bias, padding=(window.top, window.left))
    return F.conv2d(F.pad(x, (window.left, window.right, window.top, window.bottom)), kernel, bias)


def shared_conv(x: Tensor, value: Tensor, out: Tensor, bias: Tensor, num_heads: int) -> Tensor:
    """CONV with attention's weights (eq. 5): ``y = sum_h Phi_h (x W^V_h) W^O_h + b^O``.

    It is computed as it reads: project to values, shift the channels of each head by its offset, project back. The
    assembled kernel W^O_h W^V_h would cost d^3 multiplications more per call, and H / 2 times as many per position.

    Args:
        x: (B, d, h, w).
        value: W^V (d, d); head h has rows h d_k to (h + 1) d_k.
        out: W^O (d, d); head h has the same columns.
        bias: b^O (d,). The bias of the values has no part in it.
        num_heads: H.

    """
    values = F.conv2d(x, value[:, :, None, None])
    return F.conv2d(shift_heads(values, num_heads), out[:, :, None, None], bias)


def shift_heads(values: Tensor, num_heads: int) -> Tensor:
    """Apply Phi_h to the h-th of ``num_heads`` equal groups of channels of (B, d, h, w)."""
    window = head_window(num_heads)
    height, width = values.shape[2:]
    padded = F.pad(values, (window.left, window.right, window.top, window.bottom))
    moved = []
    for head, channels in enumerate(padded.chunk(num_heads, dim=1)):
        row, column = divmod(head, window.side)
        moved.append(channels[:, :, row : row + height, column : column + width])
    return torch.cat(moved, dim=1)
