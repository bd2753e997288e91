"""ViT-S and ViT-B of the paper: timm's vision transformer at the paper's sizes and initialisations."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.layers import Attention
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from bootstrapping_vit.models.agent import SLIP_MEAN, SLIP_STD, init_patch_projection
from bootstrapping_vit.models.sparse import EntmaxAttention
from vitutor_core.models.variants import build_vit_variant, imagenet_cfg

_ATTENTION: dict[str, type[nn.Module]] = {"softmax": Attention, "entmax": EntmaxAttention}


def build_vit(
    *,
    init: Literal["standard", "official"] = "standard",
    attention: Literal["softmax", "entmax"] = "softmax",
    norm_eps: float = 1e-6,
    **kwargs: Any,
) -> VisionTransformer:
    """Build timm's ``VisionTransformer``; see `init_vit` and `EntmaxAttention`.

    Raises:
        ValueError: unknown ``init`` or ``attention``.

    """
    if init not in {"standard", "official"} or attention not in _ATTENTION:
        raise ValueError(f"init = {init!r}, attention = {attention!r}: choose standard or official, softmax or entmax")
    model = VisionTransformer(
        **kwargs,
        attn_layer=_ATTENTION[attention],
        norm_layer=partial(nn.LayerNorm, eps=norm_eps),
        weight_init="skip",
    )
    init_vit(model, official=init == "official")
    return model


def init_vit(model: VisionTransformer, *, official: bool) -> None:
    """Initialise a ViT: Xavier matrices (W^QKV as one), N(0, 0.02^2) class token and positions, zero biases.

    The released code differs in two places, probably by slips of its arguments: the patch embedding is N(0, 1) and the
    biases of the FFN are N(1e-6, 1), so that the residual stream starts with a standard deviation of about 28.
    """
    nn.init.normal_(model.cls_token, std=0.02)
    nn.init.normal_(model.pos_embed, std=0.02)
    for block in model.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        if official:
            nn.init.normal_(block.mlp.fc1.bias, SLIP_MEAN, SLIP_STD)
            nn.init.normal_(block.mlp.fc2.bias, SLIP_MEAN, SLIP_STD)
    init_patch_projection(model.patch_embed.proj, official=official)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> VisionTransformer:
    model: VisionTransformer = build_vit_variant(
        build_vit, variant, pretrained, **{"patch_size": 16, **defaults, **kwargs}
    )
    return model


_CFG = imagenet_cfg(fixed_input_size=True, interpolation="bilinear", first_conv="patch_embed.proj", classifier="head")

default_cfgs = generate_default_cfgs({"bootstrapping_vit_s_patch16_224": _CFG, "bootstrapping_vit_b_patch16_224": _CFG})


def bootstrapping_vit_s_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-S of Table 2: 6 layers, width 288, 9 heads, 6,276,394 parameters with 10 classes; dropout 0.1."""
    sizes = {"embed_dim": 288, "depth": 6, "num_heads": 9}
    dropout = {"proj_drop_rate": 0.1, "attn_drop_rate": 0.1}
    return _create("bootstrapping_vit_s_patch16_224", pretrained, kwargs, **sizes, **dropout, norm_eps=1e-5)


def bootstrapping_vit_b_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-B of Table 2, of DeiT-S's size: 12 layers, width 384, 6 heads, 21,669,514 parameters with 10 classes."""
    return _create("bootstrapping_vit_b_patch16_224", pretrained, kwargs, embed_dim=384, depth=12, num_heads=6)


for _entry_point in (bootstrapping_vit_s_patch16_224, bootstrapping_vit_b_patch16_224):
    register_model(_entry_point)
