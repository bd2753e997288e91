"""The aligner between an early student block and a stage of the teacher (DearKD, Fig. 3)."""

from __future__ import annotations

import math
from typing import Literal

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F


class Aligner(nn.Module):
    """Map a student's patch tokens to the shape of a teacher's feature map, DearKD (arXiv 2204.12997) Fig. 3.

    Bilinear interpolation, depth-wise 3x3 convolution, LayerNorm over channels, ReLU, in this order. The paper does not
    say how a depth-wise convolution changes the number of channels; here a 1x1 convolution follows it.

    Args:
        dim: width d of the student.
        channels: channels c of the teacher's map.
        size: (height, width) of the teacher's map.
        channel_map: ``pointwise``: depth-wise 3x3, then 1x1; ``grouped``: one 3x3 convolution with gcd(d, c) groups.
        act: whether the ReLU ends it; False is for teacher maps with both signs, which were not taken after a ReLU.

    """

    def __init__(
        self,
        dim: int,
        channels: int,
        size: tuple[int, int],
        *,
        channel_map: Literal["pointwise", "grouped"] = "pointwise",
        act: bool = True,
    ) -> None:
        super().__init__()
        self.size = size
        if channel_map == "pointwise":
            depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
            self.conv = nn.Sequential(depthwise, nn.Conv2d(dim, channels, 1))
        else:
            self.conv = nn.Sequential(nn.Conv2d(dim, channels, 3, padding=1, groups=math.gcd(dim, channels)))
        self.norm = LayerNorm2d(channels, eps=1e-6)
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Map a block's patch tokens as a map (B, d, h, w), class token left out, to (B, c, height, width)."""
        if features.shape[-2:] != self.size:
            features = F.interpolate(features, self.size, mode="bilinear", align_corners=False)
        aligned: Tensor = self.act(self.norm(self.conv(features)))
        return aligned
