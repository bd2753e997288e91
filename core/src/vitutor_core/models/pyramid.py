"""Feature pyramids: maps of equal width at several strides, of a backbone with one map or with several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from vitutor_core.errors import ConfigError
from vitutor_core.models.backbone import Map


class SimplePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (arXiv 2203.16527, section 3), of one map of stride s.

    Its levels have strides s / 4, s / 2, s and 2 s, and a last one, subsampled, of 4 s.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        half, quarter = channels // 2, channels // 4
        finest = [nn.ConvTranspose2d(channels, half, 2, 2), LayerNorm2d(half), nn.GELU()]
        finest += [nn.ConvTranspose2d(half, quarter, 2, 2)]
        scaled: list[tuple[int, nn.Module]] = [
            (quarter, nn.Sequential(*finest)),
            (half, nn.ConvTranspose2d(channels, half, 2, 2)),
            (channels, nn.Identity()),
            (channels, nn.MaxPool2d(2)),
        ]
        self.levels = nn.ModuleList(nn.Sequential(layer, *_smoothed(given, width)) for given, layer in scaled)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map one (B, C, H, W) to levels of ``width`` channels, by name, finest first."""
        (found,) = maps
        levels = {str(number): level(found) for number, level in enumerate(self.levels)}
        return levels | {"pool": F.max_pool2d(levels["3"], 1, 2)}


def _smoothed(channels: int, width: int) -> tuple[nn.Module, ...]:
    """Return a 1x1 and a 3x3 convolution to ``width``, each with a LayerNorm."""
    first, second = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, width, 3, padding=1, bias=False)
    return first, LayerNorm2d(width), second, LayerNorm2d(width)


class TopDownPyramid(nn.Module):
    """A feature pyramid network (arXiv 1612.03144) on maps of several strides, with a subsampled last level."""

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.network = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool(), norm_layer=LayerNorm2d)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map one (B, C, H, W) for each stride to levels of ``width`` channels, by name, finest first."""
        levels: dict[str, Tensor] = self.network(OrderedDict((str(number), one) for number, one in enumerate(maps)))
        return levels


def build_pyramid(maps: Sequence[Map], width: int) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the pyramid for the maps of a backbone, and the strides of its levels, which are powers of two.

    Raises `ConfigError` for other strides, which the pooling of regions would round.
    """
    strides = tuple(found.stride for found in maps)
    odd = [stride for stride in strides if stride < 4 or stride & (stride - 1)]
    if odd:
        raise ConfigError(
            f"student.name: a detector needs patches of 4, 8, 16 or 32 pixels, not {odd[0]}; choose another model, or "
            "set student.kwargs.patch_size"
        )
    pyramid: nn.Module
    if len(maps) == 1:
        pyramid = SimplePyramid(maps[0].channels, width)
        strides = tuple(strides[0] * factor // 4 for factor in (1, 2, 4, 8))
    else:
        pyramid = TopDownPyramid([found.channels for found in maps], width)
    return pyramid, (*strides, 2 * strides[-1])
