"""Everything that the analyses look at in a model, from one forward pass."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.modes import evaluation_mode


class Layers(NamedTuple):
    """The layers of a model, in its order.

    names: of the layers. features: for CKA, (B, ...) each. maps: for Fourier analysis, (B, C, h, w) each.
    attentions: (B, heads, N, N) by block, of the ``grid`` of patches behind ``num_prefix`` other tokens; empty for
    models that are not plain ViTs.
    """

    names: tuple[str, ...]
    features: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]
    grid: tuple[int, int]
    num_prefix: int


@torch.no_grad()
def read_layers(model: nn.Module, images: Tensor, *, untrained_norm: bool = False) -> Layers:
    """Run ``model`` in evaluation mode on images (B, C, H, W) and return its layers.

    Of a ViT with L blocks these are L + 1: layer 0 is the embedding with its positions, layer i the output of block i.
    ``features`` are normalised, as the next block sees them, the last by the model's own final norm, without class and
    other prefix tokens; ``maps`` are not normalised. ``untrained_norm`` takes a norm without weights for the last
    layer instead, as the released tool does of an encoder whose final norm is dropped.

    Of other models, the layers are timm's stages, and features and maps are the same.
    """
    with evaluation_mode(model):
        if is_plain_vit(model):
            return _read_vit(model, images, untrained_norm=untrained_norm)
        names = [str(entry["module"]) for entry in getattr(model, "feature_info", ())]
        maps = read_intermediates(model, images, features=range(len(names))).features
        return Layers(tuple(names), maps, maps, (), (0, 0), 0)


def is_plain_vit(model: Any) -> bool:
    """Return whether ``model`` is a row of blocks, each with a norm in front of its attention, on one grid."""
    return hasattr(model, "num_prefix_tokens") and all(
        hasattr(block, "norm1") and hasattr(getattr(block, "attn", None), "attn_drop") for block in model.blocks
    )


def _read_vit(model: Any, images: Tensor, *, untrained_norm: bool) -> Layers:
    streams: list[Tensor] = []
    normed: list[Tensor] = []

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        streams.append(inputs[0])
        normed.append(output)

    with ExitStack() as stack:
        for module in (*(block.norm1 for block in model.blocks), model.norm):
            stack.callback(module.register_forward_hook(hook).remove)
        attentions = read_intermediates(model, images, attentions=range(len(model.blocks))).attentions
    if untrained_norm:
        normed[-1] = F.layer_norm(streams[-1], streams[-1].shape[-1:], eps=1e-6)
    else:
        normed[-1] = model.fc_norm(normed[-1])  # models that pool first have their final norm behind the pooling
    prefix, (height, width) = model.num_prefix_tokens, model.patch_embed.grid_size
    names = ("embedding", *(f"block {index}" for index in range(1, len(streams))))
    features = tuple(tokens[:, prefix:] for tokens in normed)
    contents = [tokens[:, prefix:] for tokens in streams]
    maps = tuple(x.transpose(1, 2).reshape(len(x), -1, height, width) for x in contents)
    return Layers(names, features, maps, attentions, (height, width), prefix)
