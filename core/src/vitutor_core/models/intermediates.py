"""Logits, feature maps and attention probabilities from one forward pass of any timm model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from vitutor_core.config import nearest
from vitutor_core.errors import ConfigError


class Intermediates(NamedTuple):
    """What one forward pass gave.

    logits: (B, K), equal to ``model(images)`` bit by bit; where attention is read, up to the rounding of the
        unfused attention.
    tokens: the final normalised features before pooling, exactly what ``model.forward_head`` takes: (B, P + N, C) of a
        ViT with P prefix tokens, (B, C, H, W) of a CNN.
    features: (B, C, H, W) maps in the order asked for; of a ViT block, the residual stream without prefix tokens.
    attentions: (B, heads, N, N) probabilities after the softmax and before dropout, in the order asked for.
    """

    logits: Tensor
    tokens: Tensor
    features: tuple[Tensor, ...]
    attentions: tuple[Tensor, ...]


def read_intermediates(
    model: nn.Module, images: Tensor, *, features: Sequence[int | str] = (), attentions: Sequence[int] = ()
) -> Intermediates:
    """Run ``model`` once and return its logits with the intermediate results asked for.

    Args:
        model: a timm model, with ``forward_features`` and ``forward_head``.
        images: (B, C, H, W).
        features: an int is an index of timm's ``forward_intermediates`` (of a ViT, the block; of a CNN, the stage, the
            stem being 0); a str is the name of a module that the model lists in ``feature_info`` (``"s2"``,
            ``"layer2"``, ``"blocks.3"``), or of any other submodule whose output is a map.
        attentions: indices into ``model.blocks``; the fused attention of these blocks is off during the pass.

    DeiT's distilled ViT averages its two heads unless ``set_distilled_training`` was called; with
    the default, one pass gives both heads: ``model.head(taps.tokens[:, 0])`` and
    ``model.head_dist(taps.tokens[:, 1])``.

    Raises:
        ConfigError: the model has no such feature or block, or its attention cannot be read.

    """
    located = [_locate(model, feature) for feature in features]
    hooked = [at for at in located if isinstance(at, str)]
    indices = [at for at in located if isinstance(at, int)]
    if not hooked and not attentions:
        # Without context managers and hooks, torch.compile captures the pass as one graph.
        logits, tokens, maps = _forward(model, images, indices)
        return Intermediates(logits, tokens, tuple(maps[index] for index in indices), ())
    recorded: dict[int | str, Tensor] = {}
    with ExitStack() as stack:
        for name in hooked:
            _record_output(stack, model.get_submodule(name), name, recorded)
        blocks = [_block(model, index) for index in attentions]
        probabilities: dict[nn.Module, Tensor] = {}
        for block in blocks:
            _record_probabilities(stack, block, probabilities)
        logits, tokens, maps = _forward(model, images, indices)
    recorded.update(maps)
    if any(at not in recorded or recorded[at].ndim != 4 for at in located):
        raise ConfigError(f"{type(model).__name__}: not every one of {list(features)} is a (B, C, H, W) map")
    if any(block not in probabilities for block in blocks):
        raise ConfigError(f"{type(model).__name__}: its attention does not pass through attn_drop, so it has no map")
    return Intermediates(
        logits, tokens, tuple(recorded[at] for at in located), tuple(probabilities[block] for block in blocks)
    )


def forward_features(model: Any, images: Tensor, features: Sequence[int | str]) -> tuple[Tensor, ...]:
    """Return the maps that `read_intermediates` gives for ``features``, without what lies behind the deepest of them.

    Where timm cannot stop there, as with modules that its ``feature_info`` does not list, the whole model is run.
    """
    located = [_locate(model, feature) for feature in features]
    if not all(isinstance(at, int) for at in located):
        return read_intermediates(model, images, features=features).features
    wanted = sorted(set(located))
    found = model.forward_intermediates(images, indices=wanted, stop_early=True, intermediates_only=True)
    maps = dict(zip(wanted, found, strict=True))
    return tuple(maps[at] for at in located)


def _forward(model: Any, images: Tensor, indices: list[int]) -> tuple[Tensor, Tensor, dict[int | str, Tensor]]:
    maps: dict[int | str, Tensor] = {}
    if indices:
        # timm returns maps in the order of the network, each once.
        wanted = sorted(set(indices))
        tokens, found = model.forward_intermediates(images, indices=wanted)
        maps.update(zip(wanted, found, strict=True))
    else:
        tokens = model.forward_features(images)
    logits = model.forward_head(tokens)
    if isinstance(logits, tuple):
        raise ConfigError(
            f"{type(model).__name__} returns a tuple of logits; call set_distilled_training(False), or take one head"
        )
    return logits, tokens, maps


def _locate(model: Any, feature: int | str) -> int | str:
    """Return the index for ``forward_intermediates``, or the name of the submodule to hook."""
    listed = [entry["module"] for entry in model.feature_info] if hasattr(model, "forward_intermediates") else []
    if isinstance(feature, int):
        if -len(listed) <= feature < len(listed):
            return feature % len(listed)
    elif feature in listed:
        return listed.index(feature)
    elif feature and feature in dict(model.named_modules()):
        return feature
    valid = listed or [name for name, _ in model.named_children()]
    hint = nearest(feature, valid) if isinstance(feature, str) else ""
    raise ConfigError(
        f"{type(model).__name__} has no feature {feature!r}{hint}; features: {', '.join(valid)}"
        + (f", or 0 to {len(listed) - 1}" if listed else "")
    )


def _block(model: Any, index: int) -> Any:
    """Return the attention module of block ``index``."""
    blocks = getattr(model, "blocks", ())
    if not -len(blocks) <= index < len(blocks):
        raise ConfigError(f"{type(model).__name__} has no attention of block {index}: it has {len(blocks)} blocks")
    attention = getattr(blocks[index], "attn", None)
    if not hasattr(attention, "attn_drop"):
        raise ConfigError(f"{type(model).__name__}: block {index} has no attention map (attn.attn_drop is missing)")
    return attention


def _record_output(stack: ExitStack, module: nn.Module, name: str, recorded: dict[int | str, Tensor]) -> None:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        # A copy, because the next module may work in place.
        recorded[name] = output.clone()

    stack.callback(module.register_forward_hook(hook).remove)


def _record_probabilities(stack: ExitStack, attention: Any, probabilities: dict[nn.Module, Tensor]) -> None:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        probabilities[attention] = inputs[0]

    if getattr(attention, "fused_attn", False):
        stack.callback(setattr, attention, "fused_attn", True)
        attention.fused_attn = False
    stack.callback(attention.attn_drop.register_forward_pre_hook(hook).remove)
