"""The operators of `vitutor_core.models.involution`, forward and backward, in a loop over the taps of the window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

SHORT_ROW = 16


@torch.library.custom_op("vitutor::involution", mutates_args=())
def operator(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Apply a kernel to the window of each position; see `vitutor_core.models.involution.involution`."""
    padded, weights = _padded(x, kernels), _arranged(kernels, kernels)
    out = torch.zeros_like(next(_windows(padded, kernels, stride))[1])
    for tap, window in _windows(padded, kernels, stride):
        out.addcmul_(window, weights[:, :, tap, None])
    return out.flatten(1, 2).to(x.dtype).contiguous()


@torch.library.custom_op("vitutor::involution_backward", mutates_args=())
def _involution_backward(gradient: Tensor, x: Tensor, kernels: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    padded, weights = _padded(x, kernels), _arranged(kernels, kernels)
    gradient = _grouped(_arranged(gradient, kernels), kernels)
    to_padded, to_weights = torch.zeros_like(padded), torch.empty_like(weights)
    windows = _windows(padded, kernels, stride)
    for (tap, window), (_, to_window) in zip(windows, _windows(to_padded, kernels, stride), strict=True):
        to_window.addcmul_(gradient, weights[:, :, tap, None])
        to_weights[:, :, tap] = (gradient * window).sum(2)
    margin = math.isqrt(kernels.shape[2]) // 2
    height, width = x.shape[-2:]
    to_x = to_padded[..., margin : margin + height, margin : margin + width].flatten(1, 2)
    return to_x.to(x.dtype).contiguous(), to_weights.to(kernels.dtype).contiguous()


def _arranged(tensor: Tensor, kernels: Tensor) -> Tensor:
    """Return a copy or view in at least float32 that is quick to loop over, whatever its memory format.

    Rows of few pixels make short loops: there, the batch becomes the innermost dimension in memory (of the same shape).
    """
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    if kernels.shape[-1] > SHORT_ROW:
        return tensor.contiguous()
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def _padded(x: Tensor, kernels: Tensor) -> Tensor:
    """Return x with zeros around it, in groups: (B, G, C / G, H + K - 1, W + K - 1)."""
    margin = math.isqrt(kernels.shape[2]) // 2
    return _grouped(_arranged(F.pad(x, (margin,) * 4), kernels), kernels)


def _grouped(tensor: Tensor, kernels: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, G, C / G, H, W)."""
    batch, channels, *sides = tensor.shape
    groups = kernels.shape[1]
    return tensor.view(batch, groups, channels // groups, *sides)


def _windows(padded: Tensor, kernels: Tensor, stride: int) -> Iterator[tuple[int, Tensor]]:
    """Yield the index of each tap and the view of the padded map that it multiplies, (B, G, C / G, h, w)."""
    size, (height, width) = math.isqrt(kernels.shape[2]), kernels.shape[3:]
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + stride * (height - 1) + 1, stride)
            columns = slice(column, column + stride * (width - 1) + 1, stride)
            yield row * size + column, padded[..., rows, columns]


@operator.register_fake
def _(x: Tensor, kernels: Tensor, _stride: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], *kernels.shape[3:]))


@_involution_backward.register_fake
def _(_gradient: Tensor, x: Tensor, kernels: Tensor, _stride: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), kernels.new_empty(kernels.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, kernels, ctx.stride = inputs
    ctx.save_for_backward(x, kernels)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *_involution_backward(gradient, *ctx.saved_tensors, ctx.stride), None


operator.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.vitutor.involution)
def _flops(x: Any, kernels: Any, *_rest: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    """Two per tap and output element, as of a depthwise convolution."""
    batch, _, taps, height, width = kernels
    return 2 * int(batch * x[1] * taps * height * width)
