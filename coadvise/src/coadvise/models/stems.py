"""Token alignment (Co-advise, arXiv 2106.12378, section 3.2): patches and tokens from a convolution and an involution.

The paper does not say how the stems become tokens; this is the released code's way.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn

from vitutor_core.models.rednet import involution_stem

STEMS = ("conv", "inv")
WIDTH, STRIDE = 64, 2


class StemEmbed(PatchEmbed):  # type: ignore[misc]  # timm has no type information
    """Replaces the linear patch embedding by one or both stems.

    A stem maps images (B, C, H, W) to a map of half the size, and a projection maps its patches to E (B, N, D). Returns
    (B, n + N, D): the mean of each of the n stems' E, which is that stem's token, then the sum of all E as patches.
    The involution stem computes in the type of its weights, also under autocast.

    Raises:
        ValueError: an unknown or repeated stem, or an odd patch size.

    """

    def __init__(
        self, stems: tuple[str, ...], *, patch_size: int, in_chans: int, embed_dim: int, **kwargs: Any
    ) -> None:
        super().__init__(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        if not stems or set(stems) - set(STEMS) or len(set(stems)) != len(stems) or patch_size % STRIDE:
            raise ValueError(f"stems {list(stems)} with patches of {patch_size}: choose from {STEMS}, and an even size")
        del self.proj
        self.stems = nn.ModuleDict({name: _stem(name, in_chans) for name in stems})
        self.projections = nn.ModuleDict(
            {name: nn.Conv2d(WIDTH, embed_dim, patch_size // STRIDE, stride=patch_size // STRIDE) for name in stems}
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return combine([self._embed(name, images) for name in self.stems])

    def _embed(self, name: str, images: Tensor) -> Tensor:
        stem, project = self.stems[name], cast("nn.Conv2d", self.projections[name])
        if name == "inv" and torch.amp.is_autocast_available(images.device.type):
            with torch.autocast(images.device.type, enabled=False):
                return _tokens(project(stem(images.to(project.weight.dtype))))
        return _tokens(project(stem(images)))


def combine(embeddings: list[Tensor]) -> Tensor:
    """Put the mean of each stem's tokens (B, N, D) in front of the sum of all: (B, n + N, D)."""
    means = [embedding.mean(1, keepdim=True) for embedding in embeddings]
    return torch.cat([*means, torch.stack(embeddings).sum(0)], dim=1)


def _stem(name: str, in_chans: int) -> nn.Sequential:
    return convolution_stem(in_chans) if name == "conv" else involution_stem(in_chans, WIDTH, STRIDE)


def convolution_stem(in_chans: int) -> nn.Sequential:
    """Build a 7x7 convolution of stride 2 and two 3x3 convolutions, 64 channels, each with BN and ReLU."""
    layers: list[nn.Module] = []
    for channels, size, stride in ((in_chans, 7, STRIDE), (WIDTH, 3, 1), (WIDTH, 3, 1)):
        layers += [
            nn.Conv2d(channels, WIDTH, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)
