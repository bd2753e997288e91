"""A student as the backbone of a detector: its weights brought to another image size, and its maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.data.types import DataInfo
from vitutor_core.errors import ConfigError, first_line
from vitutor_core.models.fit import classifier_of
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import create_student, fit_start, start_of
from vitutor_core.schema import ModelConfig

_DISTILLED = VisionTransformerDistilled.forward_features
_UNUSED = ("norm.", "fc_norm.", "head.")
"""How the names of the last norm and of heads begin."""
_COARSEST = 32
"""The largest stride of a map that is used."""


class Map(NamedTuple):
    """A map of a backbone: its stride in pixels and its channels."""

    stride: int
    channels: int


class MapReader(NamedTuple):
    """Which maps are read of a model, finest first, and how; see `map_reader`."""

    maps: tuple[Map, ...]
    indices: tuple[int, ...]
    """Of a plain ViT, the blocks with global attention; else the features of `read_intermediates`."""
    is_plain: bool
    window: int | None

    def __call__(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """Return the maps, (B, C, H, W) each, of images (B, 3, S, S)."""
        if self.is_plain:
            return (plain_map(model, images, self.window, self.indices),)
        return read_intermediates(model, images, features=self.indices).features


def create_backbone(config: ModelConfig, info: DataInfo) -> nn.Module:
    """Build the student for the size of the data, and load the weights that it starts from.

    Positions are resampled. The classifier and the last norm, which a detector does not use, stay fresh. Raises as
    `models.weights.create_model` does.
    """
    model = create_student(config.model_copy(update={"weights": None, "start_row": None}), info)
    start = start_of(config)
    if start is not None:
        fitted = fit_start(model, start, optional=_UNUSED).tensors
        beyond = (*_UNUSED, *classifier_of(model))
        body = {name: value for name, value in fitted.items() if not name.startswith(beyond)}
        model.load_state_dict(body, strict=False)
    return model


def map_reader(model: Any, *, window: int | None, global_blocks: int) -> MapReader:
    """Choose the maps of a student.

    A plain ViT has one map, computed without prefix tokens, with windowed attention (ViTDet, arXiv 2203.16527); other
    models the last map of each stride from 4 to 32, as `read_intermediates` gives them. Raises `ConfigError` for a
    model without maps.
    """
    if _is_plain(model):
        own = (Map(model.feature_info[-1]["reduction"], model.embed_dim),)
        return MapReader(own, spread(len(model.blocks), global_blocks), is_plain=True, window=window)
    infos = list(getattr(model, "feature_info", ()))
    last = {info["reduction"]: index for index, info in enumerate(infos) if 4 <= info["reduction"] <= _COARSEST}
    if not last:
        raise ConfigError(
            f"student.name: {type(model).__name__} lists no map of stride 4 to {_COARSEST}; choose a model of timm"
        )
    indices = tuple(last[stride] for stride in sorted(last))
    maps = tuple(Map(infos[index]["reduction"], infos[index]["num_chs"]) for index in indices)
    return MapReader(maps, indices, is_plain=False, window=None)


def _is_plain(model: Any) -> bool:
    """Tell a ViT of timm whose tokens meet in the attention of its blocks alone, so that windows can be cut."""
    if not isinstance(model, VisionTransformer) or model.dynamic_img_size:
        return False
    is_own = type(model).forward_features in (VisionTransformer.forward_features, _DISTILLED)
    # A table of relative positions is laid out for the whole grid, with a class token.
    blocks = all(type(block) is Block and not hasattr(block.attn, "window_size") for block in model.blocks)
    return is_own and isinstance(model.pos_embed, nn.Parameter) and blocks


def spread(depth: int, count: int) -> tuple[int, ...]:
    """Return ``count`` of ``depth`` blocks, evenly spaced up to the last: 2, 5, 8, 11 of 12."""
    return tuple(sorted({round((number + 1) * depth / count) - 1 for number in range(count)} & set(range(depth))))


def plain_map(vit: Any, images: Tensor, window: int | None, global_blocks: Sequence[int]) -> Tensor:
    """Return the tokens after the last block of a plain ViT as a map (B, C, H, W), without prefix tokens.

    All but the ``global_blocks`` attend within windows of ``window`` x ``window`` patches. Padding is masked, so that
    a window larger than the map is the whole map.
    """
    height, width = vit.patch_embed.grid_size
    prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    tokens = vit.norm_pre(vit.patch_embed(images) + vit.pos_embed[:, prefix:])
    grid = tokens.unflatten(1, (height, width))
    for index, block in enumerate(vit.blocks):
        if window is None or index in global_blocks or window >= max(height, width):
            grid = block(grid.flatten(1, 2)).unflatten(1, (height, width))
        else:
            grid = _windowed(block, grid, window)
    found: Tensor = grid.permute(0, 3, 1, 2).contiguous()
    return found


def _windowed(block: nn.Module, grid: Tensor, side: int) -> Tensor:
    """Run a block on each window of a grid (B, H, W, C) by itself."""
    _, height, width, channels = grid.shape
    below, right = -height % side, -width % side
    windows = _cut(F.pad(grid, (0, 0, 0, right, 0, below)), side)
    mask = None
    if below or right:
        inside = F.pad(grid.new_ones(len(grid), height, width, 1, dtype=torch.bool), (0, 0, 0, right, 0, below))
        mask = _cut(inside, side)[:, None, None, :, 0]
    seen: Tensor = block(windows, attn_mask=mask)
    across = (width + right) // side
    rows = seen.view(len(grid), -1, across, side, side, channels).transpose(2, 3)
    return rows.reshape(len(grid), height + below, width + right, channels)[:, :height, :width]


def _cut(grid: Tensor, side: int) -> Tensor:
    """Cut (B, H, W, C) into windows (B * H * W / side², side², C), row by row."""
    batch, height, width, channels = grid.shape
    rows = grid.view(batch, height // side, side, width // side, side, channels).transpose(2, 3)
    return rows.reshape(-1, side * side, channels)


def freeze_unused(model: nn.Module, reader: MapReader, images: Tensor) -> None:
    """Stop training the parameters that the maps of a model do not depend on: DDP would wait for their gradients.

    Raises `ConfigError` where the model cannot be run on the ``images``.
    """
    try:
        with torch.random.fork_rng(devices=[]), evaluation_mode(model):  # running statistics stay as they are
            sums = [found.sum() for found in reader(model, images)]
            torch.stack(sums).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a model may fail in any way where nobody has tried it
        size = images.shape[-1]
        raise ConfigError(
            f"student.name: {type(model).__name__} gives no maps of images of {size} px ({first_line(error)}); choose "
            "another data.image_size or model"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.requires_grad and parameter.grad is not None)
        parameter.grad = None
