"""Involution (Li et al., "Involution: Inverting the Inherence of Convolution", CVPR 2021, arXiv 2103.06255).

A kernel for every position, computed from the features there and shared by the channels of a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROUP_CHANNELS = 16
REDUCTION = 4


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
        _operator()
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
    out: Tensor = _operator()(x, kernels, stride)
    return out


def unfolded(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Return the same in operators that every reader of an exported model has, with K * K copies of ``x``."""
    batch, groups, taps, rows, columns = kernels.shape
    size = math.isqrt(taps)
    windows = F.unfold(x, size, padding=size // 2, stride=stride).view(batch, groups, -1, taps, rows, columns)
    return (windows * kernels[:, :, None]).sum(3).flatten(1, 2)


def _operator() -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return the operator; torch takes a tenth of a second to register it, which other networks do not need."""
    from vitutor_core.models.involution_operator import operator

    return operator
