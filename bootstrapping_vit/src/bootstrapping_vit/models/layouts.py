"""The names of tensors in checkpoints of the released code: of a ViT or an agent alone, or of both as a pair."""

from __future__ import annotations

from torch import Tensor

from vitutor_core.models.layouts import Layout


def _batch_first(positions: Tensor) -> Tensor:
    return positions.transpose(0, 1) if positions.ndim == 3 and positions.shape[1] == 1 else positions


def _taps(kernel: Tensor) -> Tensor:
    return kernel.flatten(2) if kernel.ndim == 4 else kernel


_VIT, _AGENT = r"(?:models\.vit\.)?", r"(?:models\.cnn\.)?"
_LAYER = r"transformer\.layers\.(\d+)\."
_SIZES = "sb"

VIT = Layout(
    "Bootstrapping's ViT",
    (
        (rf"{_VIT}pos_embed\.pos_embed$", "pos_embed"),
        (rf"{_VIT}{_LAYER}attention\.linear_qkv\.", r"blocks.\1.attn.qkv."),
        (rf"{_VIT}{_LAYER}attention\.linear_out\.", r"blocks.\1.attn.proj."),
        (rf"{_VIT}{_LAYER}attention\.softmax\.alpha$", r"blocks.\1.attn.alpha"),
        (rf"{_VIT}{_LAYER}mlp\.linear(\d)\.", r"blocks.\1.mlp.fc\2."),
        (rf"{_VIT}{_LAYER}norm(\d)\.", r"blocks.\1.norm\2."),
        (rf"{_VIT}transformer\.norm\.", "norm."),
        (rf"{_VIT}cls_head\.", "head."),
        (r"models\.vit\.", ""),
        (r"models\.cnn\.", "agent."),
    ),
    aside=("agent.",),
    values={"pos_embed": _batch_first},
    models=tuple(
        (f"bootstrapping_vit_{size}_patch16_224", kwargs) for kwargs in ({}, {"attention": "entmax"}) for size in _SIZES
    ),
)

AGENT = Layout(
    "Bootstrapping's agent",
    (
        (rf"{_AGENT}input_proj\.conv1\.", "stem.0."),
        (rf"{_AGENT}input_proj\.norm\.", "stem.1."),
        (rf"{_AGENT}input_proj\.conv2\.", "stem.4."),
        (rf"{_AGENT}input_proj\.", "stem."),
        (rf"{_AGENT}layers\.(\d+)\.norm(\d)\.", r"blocks.\1.norm\2."),
        (rf"{_AGENT}layers\.(\d+)\.cnn_block\.(?:conv\.)?(weight|bias)$", r"blocks.\1.conv.\2"),
        (rf"{_AGENT}layers\.(\d+)\.mlp_block\.conv(\d)\.", r"blocks.\1.mlp.fc\2."),
        (rf"{_AGENT}bn\.", "norm."),
        (rf"{_AGENT}linear\.", "head."),
        (r"models\.vit\.", "vit."),
    ),
    aside=("vit.",),
    values={r"blocks\.\d+\.conv\.weight": _taps},
    models=(
        ("bootstrapping_agent_s", {"down": (0, 1)}),  # as the released configuration has it
        ("bootstrapping_agent_b", {}),
        *((f"bootstrapping_agent_{size}", {"stem": "base", "down": ()}) for size in _SIZES),
    ),
)

LAYOUTS = (VIT, AGENT)
