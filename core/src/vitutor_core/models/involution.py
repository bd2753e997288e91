"""Involution (Li et al., "Involution: Inverting the Inherence of Convolution", CVPR 2021, arXiv 2103.06255).

A kernel for every position, computed from the features there and shared by the channels of a group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

GROUP_CHANNELS = 16
REDUCTION = 4
SHORT_ROW = 16


class Involution(nn.Module):
    """Involution layer: (B, C, H, W) -> (B, C, H / stride, W / stride), zero padding, no value projection.

    The kernel of an output position comes from the mean of its ``stride`` x ``stride`` input pixels, while the window
    it is applied to is centred on the first of them: for even strides the two are half a pixel apart, as in the
    published network.

    Under autocast, kernels are generated and applied in float32, since a sum has ``kernel_size``^2 terms.

    Raises:
        ValueError: ``channels`` is not a multiple of 16, or, in the forward pass, the map's sides none of ``stride``.

    """

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        if channels % GROUP_CHANNELS or kernel_size % 2 == 0:
            raise ValueError(
                f"Involution: {channels} channels and kernel {kernel_size}; it needs a multiple of {GROUP_CHANNELS} "
                "channels and an odd kernel"
            )
        self.kernel_size, self.stride, self.groups = kernel_size, stride, channels // GROUP_CHANNELS
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.reduce = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels // REDUCTION)
        self.act = nn.ReLU(inplace=True)
        self.generate = nn.Conv2d(channels // REDUCTION, self.groups * kernel_size**2, 1)
        for conv in (self.reduce, self.generate):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.generate.bias)  # type: ignore[arg-type]  # it has a bias

    def kernels(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to kernels (B, groups, K * K, H / stride, W / stride), row by row of the window."""
        height, width = x.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"Involution of stride {self.stride} on a map of {height}x{width}: its kernels and windows would not "
                "match; make the input size divisible by the network's stride"
            )
        kernels: Tensor = self.generate(self.act(self.bn(self.reduce(self.pool(x)))))
        return kernels.view(x.shape[0], self.groups, self.kernel_size**2, height // self.stride, width // self.stride)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return involution(x.float(), self.kernels(x.float()), self.stride)
        return involution(x, self.kernels(x), self.stride)


def involution(x: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """Apply a kernel to the window of each position, arXiv 2103.06255, eq. 4.

    ``out[b, c, i, j] = sum over u, v of kernels[b, g, u * K + v, i, j] * x[b, c, stride * i + u - K // 2, ...]`` with
    g the group of channel c and zeros outside the map. Half precision is summed in float32.

    It runs over the K * K shifted maps, so it keeps nothing but its inputs for the backward pass, where
    ``F.unfold`` keeps K * K copies of ``x``. One operator for torch.compile, which would unroll the loops.

    Args:
        x: (B, C, H, W).
        kernels: (B, G, K * K, h, w) with h = ceil(H / stride); each of the G groups has C / G successive channels.
        stride: of the windows.

    Raises:
        ValueError: the shapes do not fit.

    """
    size, groups = math.isqrt(kernels.shape[2]), kernels.shape[1]
    grid = tuple(-(-side // stride) for side in x.shape[-2:])
    fits = x.shape[0] == kernels.shape[0] and grid == kernels.shape[3:]
    if size**2 != kernels.shape[2] or x.shape[1] % groups or not fits:
        raise ValueError(f"involution: kernels {tuple(kernels.shape)} for a map {tuple(x.shape)} with stride {stride}")
    if torch.compiler.is_exporting():
        return unfolded(x, kernels, stride)
    out: Tensor = _involution(x, kernels, stride)
    return out


def unfolded(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Return the same in operators that every reader of an exported model has, with K * K copies of ``x``."""
    batch, groups, taps, rows, columns = kernels.shape
    size = math.isqrt(taps)
    windows = F.unfold(x, size, padding=size // 2, stride=stride).view(batch, groups, -1, taps, rows, columns)
    return (windows * kernels[:, :, None]).sum(3).flatten(1, 2)


@torch.library.custom_op("vitutor::involution", mutates_args=())
def _involution(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
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


@_involution.register_fake
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


_involution.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.vitutor.involution)
def _flops(x: Any, kernels: Any, *_rest: Any, out_shape: Any = None, **_kwargs: Any) -> int:
    """Two per tap and output element, as of a depthwise convolution."""
    batch, _, taps, height, width = kernels
    return 2 * int(batch * x[1] * taps * height * width)
