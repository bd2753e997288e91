"""A plain timm ViT with learnt relative positions beside its own: the fine-tuning of MAE-Lite's later code."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, gen_relative_position_index, resize_rel_pos_bias_table_simple, resolve_self_attn_mask
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitutor_core.models.variants import build_vit_variant, imagenet_cfg

TABLE = "relative_position_bias_table"


class RelativeAttention(Attention):  # type: ignore[misc]  # timm has no type information
    """timm's ``Attention`` with a bias on its logits for each head and offset between two patches, as in BEiT.

    The table ((2h - 1)(2w - 1) + 3, heads) of an h x w grid starts at zero, where the layer is timm's. Its last three
    rows are for the class token looking at patches, patches looking at it, and itself.
    """

    window_size: tuple[int, int]
    relative_position_bias_table: nn.Parameter
    relative_position_index: Tensor

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Lay the bias out for a grid (h, w) of patches with a class token.

        A table for another grid is resampled; raises `ValueError` where that was not square.
        """
        shape = ((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, self.num_heads)
        like = self.qkv.weight
        table = getattr(self, TABLE, None)
        if table is None:
            table = torch.zeros(shape, dtype=like.dtype, device=like.device)
        elif grid != self.window_size:
            if len(set(self.window_size)) > 1:
                raise ValueError(f"relative positions of {self.window_size} patches: only a square grid is resampled")
            table = resize_rel_pos_bias_table_simple(table.detach(), new_window_size=grid, new_bias_shape=shape)
        self.window_size = grid  # as timm's layers name it
        self.relative_position_bias_table = nn.Parameter(table)
        index = gen_relative_position_index(grid, class_token=True, device=like.device)
        self.register_buffer("relative_position_index", index, persistent=False)

    def position_bias(self) -> Tensor:
        """Return the bias (heads, 1 + h * w, 1 + h * w), class token first, by query and key."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over tokens ``x`` (B, 1 + h * w, C); mask and causality are those of timm's ``Attention``."""
        bias = self.position_bias()
        mask = resolve_self_attn_mask(x.shape[1], bias, attn_mask, is_causal)
        attended: Tensor = super().forward(x, attn_mask=bias if mask is None else bias + mask)
        return attended


class RelativeVisionTransformer(VisionTransformer):  # type: ignore[misc]  # timm has no type information
    """timm's ``VisionTransformer`` with `RelativeAttention`; it draws what that draws, so both start as one model."""

    def __init__(self, **kwargs: Any) -> None:
        unfit = any(kwargs.get(name) for name in ("dynamic_img_size", "patch_drop_rate", "reg_tokens"))
        if unfit or not kwargs.get("class_token", True):
            raise ValueError("relative positions need a fixed grid, and a class token as the only other token")
        super().__init__(**kwargs, attn_layer=RelativeAttention)
        self._set_grid()

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the resolution: positions of both kinds are resampled."""
        super().set_input_size(*args, **kwargs)
        self._set_grid()

    def _set_grid(self) -> None:
        for block in self.blocks:
            block.attn.set_grid(self.patch_embed.grid_size)


def tables(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the tables of relative positions of a model, none of a plain one."""
    return tuple(name for name, _ in model.named_parameters() if name.endswith(f".{TABLE}"))


default_cfgs = generate_default_cfgs(
    {
        "mae_lite_relative_tiny_patch16_224": imagenet_cfg(
            fixed_input_size=True, first_conv="patch_embed.proj", classifier="head"
        )
    }
)


def mae_lite_relative_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> RelativeVisionTransformer:
    """ViT-Tiny with 12 heads, pooled over its patches, with relative positions: 5,822,824 parameters."""
    sizes = {"patch_size": 16, "embed_dim": 192, "depth": 12, "num_heads": 12, "global_pool": "avg"}
    model: RelativeVisionTransformer = build_vit_variant(
        RelativeVisionTransformer, "mae_lite_relative_tiny_patch16_224", pretrained, **sizes | kwargs
    )
    return model


register_model(mae_lite_relative_tiny_patch16_224)
