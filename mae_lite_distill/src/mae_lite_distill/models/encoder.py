"""A plain timm ViT as masked autoencoder: the encoder sees the kept patches only (MAE, arXiv 2111.06377)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.errors import ConfigError


class Masking(NamedTuple):
    """Which patches are kept.

    shuffle: (B, N), the patches in random order; the first ``kept`` stay, in this order. restore: (B, N), its inverse.
    removed: (B, N), 1 for removed patches, else 0.
    """

    shuffle: Tensor
    restore: Tensor
    removed: Tensor
    kept: int


class Encoded(NamedTuple):
    """What the encoder gave.

    tokens: (B, 1 + kept, D), normalised, class token first. last: the same after the last block and before the norm.
    logits: attention logits (B, h, l, l) by block, from 0. hidden: by block, what `read_after` gives.
    """

    tokens: Tensor
    last: Tensor
    logits: dict[int, Tensor]
    hidden: dict[int, Tensor]


def random_masking(
    batch: int, patches: int, ratio: float, device: torch.device, *, generator: torch.Generator | None = None
) -> Masking:
    """Draw a masking per image; int(patches * (1 - ratio)) patches are kept."""
    # The loop seeds torch's generator in every step, so that a resumed run draws the same.
    noise = torch.rand(batch, patches, device=device, generator=generator)
    return masking_of(noise.argsort(dim=1), int(patches * (1 - ratio)))


def masking_of(shuffle: Tensor, kept: int) -> Masking:
    """Return the masking that keeps the first ``kept`` of the (B, N) patches ``shuffle``."""
    restore = shuffle.argsort(dim=1)
    return Masking(shuffle, restore, (restore >= kept).float(), kept)


def check_encoder(vit: nn.Module, where: str) -> None:
    """Raise `ConfigError` unless ``vit`` is a plain timm ViT: one class token, learnt positions, fused qkv."""
    name = type(vit).__name__
    if not isinstance(vit, VisionTransformer) or type(vit.blocks[0].attn) is not Attention:
        raise ConfigError(f"{where}: {name} is not a plain vision transformer of timm")
    fits = vit.num_prefix_tokens == 1 and vit.pos_embed is not None and not vit.no_embed_class
    if not fits or vit.dynamic_img_size:
        raise ConfigError(f"{where}: needs one class token and a position for it; choose such a model")
    grid, width = vit.patch_embed.grid_size, vit.embed_dim
    if width % 4:
        raise ConfigError(f"{where}: the width {width} of the model is not a multiple of 4")
    if grid[0] * grid[1] < 4:
        raise ConfigError(f"{where}: only {grid[0]} x {grid[1]} patches; choose a smaller patch_size")


def encode(
    vit: Any,
    images: Tensor,
    masking: Masking | None = None,
    *,
    logits: Collection[int] = (),
    hidden: Collection[int] = (),
    tokens_after: int | None = None,
) -> Encoded:
    """Run the encoder on the kept patches; without ``masking`` on all of them, as in inference.

    Args:
        vit: a timm ViT that `check_encoder` accepts.
        images: (B, C, H, W).
        masking: of these images.
        logits: blocks, from 0, whose attention logits are wanted; only these materialise them.
        hidden: blocks, from 0, whose hidden states are wanted.
        tokens_after: number of blocks after which ``tokens`` are taken; None: after all.

    """
    tokens = _embed(vit, images, masking)
    found: dict[int, Tensor] = {}
    states: dict[int, Tensor] = {}
    taken: Tensor | None = None
    for index, block in enumerate(vit.blocks):
        if index in logits:
            tokens, qkv = _with_qkv(block, tokens)
            found[index] = attention_logits(block.attn, *qkv.chunk(3, dim=-1)[:2])
        else:
            tokens = block(tokens)
        if index in hidden:
            states[index] = read_after(vit, tokens, index)
        if index + 1 == tokens_after:
            taken = vit.norm(tokens)
    return Encoded(vit.norm(tokens) if taken is None else taken, tokens, found, states)


def encode_logits(vit: Any, images: Tensor, masking: Masking | None, blocks: Collection[int]) -> dict[int, Tensor]:
    """Return the attention logits of ``blocks`` alone; of the last one, only queries and keys are computed."""
    tokens = _embed(vit, images, masking)
    found: dict[int, Tensor] = {}
    for index in range(max(blocks) + 1):
        block = vit.blocks[index]
        if index in blocks:
            attention, normed = block.attn, block.norm1(tokens)
            rows = 2 * attention.attn_dim
            bias = None if attention.qkv.bias is None else attention.qkv.bias[:rows]
            queries, keys = F.linear(normed, attention.qkv.weight[:rows], bias).chunk(2, dim=-1)
            found[index] = attention_logits(attention, queries, keys)
        if index < max(blocks):
            tokens = block(tokens)
    return found


def encode_hidden(vit: Any, images: Tensor, masking: Masking | None, blocks: Collection[int]) -> dict[int, Tensor]:
    """Return the hidden states of ``blocks`` alone; what lies behind the last of them is not run."""
    tokens = _embed(vit, images, masking)
    found: dict[int, Tensor] = {}
    for index in range(max(blocks) + 1):
        tokens = vit.blocks[index](tokens)
        if index in blocks:
            found[index] = read_after(vit, tokens, index)
    return found


def read_after(vit: Any, tokens: Tensor, block: int) -> Tensor:
    """Return the tokens (B, l, D) after a block behind the norm of what reads them: the next block, or the end."""
    last = block + 1 == len(vit.blocks)
    hidden: Tensor = (vit.norm if last else vit.blocks[block + 1].norm1)(tokens)
    return hidden


def attention_logits(attention: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Return the scaled products (B, h, l, l) before the softmax, of projected queries and keys (B, l, h * d)."""
    queries, keys = (
        norm(x.view(*x.shape[:2], attention.num_heads, attention.head_dim).transpose(1, 2))
        for norm, x in ((attention.q_norm, queries), (attention.k_norm, keys))
    )
    logits: Tensor = (queries * attention.scale) @ keys.transpose(-2, -1)
    return logits


def _with_qkv(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block and return with its tokens what its qkv projection gave. The attention itself stays fused."""
    recorded: list[Tensor] = []

    def qkv(normed: Tensor) -> Tensor:
        recorded.append(block.attn.qkv(normed))
        return recorded[0]

    attention = _Changed(block.attn, "qkv", qkv)
    changed = _Changed(block, "attn", partial(type(block.attn).forward, attention))
    return type(block).forward(changed, tokens), recorded[0]


class _Changed:
    """A module with another ``part`` for one call. A hook would do the same and break torch.compile's graph."""

    def __init__(self, module: nn.Module, name: str, part: Callable[..., Tensor]) -> None:
        self._module = module
        self._changed = {name: part}

    def __getattr__(self, name: str) -> Any:
        return self._changed[name] if name in self._changed else getattr(self._module, name)


def _embed(vit: Any, images: Tensor, masking: Masking | None) -> Tensor:
    """Return class token and kept patches with their positions: (B, 1 + kept, D)."""
    tokens = vit.patch_embed(images) + vit.pos_embed[:, 1:]
    if masking is not None:
        kept = masking.shuffle[:, : masking.kept, None].expand(-1, -1, tokens.shape[-1])
        tokens = tokens.gather(1, kept)
    first = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(tokens), -1, -1)
    embedded: Tensor = vit.norm_pre(torch.cat([first, tokens], dim=1))
    return embedded
