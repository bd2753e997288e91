"""The DearKD student: timm's vision transformer whose first blocks use MHCA, registered with timm."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

from dearkd.models.mhca import MHCA
from vitutor_core.models.variants import build_vit_variant, imagenet_cfg

MHCA_OPTIONS = (
    "rpe_drop",
    "rpe_drop_mode",
    "rpe_init",
    "learn_delta",
    "alpha_param",
    "value_identity_init",
    "attn_impl",
)


class DearKDVisionTransformer(VisionTransformer):  # type: ignore[misc]  # timm has no type information
    """timm's ``VisionTransformer`` with MHCA in its first ``mhca_blocks`` blocks (DearKD, arXiv 2204.12997, Fig. 2).

    Everything else is DeiT's, class token and learnt positions included. Each block has its own alpha and delta.
    Takes the options of `MHCA` that `MHCA_OPTIONS` names, and those of ``VisionTransformer``.

    Raises:
        ValueError: ``mhca_blocks`` exceeds the depth, or the grid of patches is not fixed.

    """

    def __init__(self, *, mhca_blocks: int = 8, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in MHCA_OPTIONS if name in kwargs}
        weight_init = kwargs.pop("weight_init", "")
        super().__init__(**kwargs, weight_init="skip")
        if mhca_blocks > len(self.blocks):
            raise ValueError(f"mhca_blocks = {mhca_blocks}, but the depth is {len(self.blocks)}")
        if kwargs.get("dynamic_img_size") or kwargs.get("patch_drop_rate") or kwargs.get("qk_norm"):
            raise ValueError("MHCA supports none of dynamic_img_size, patch_drop_rate and qk_norm")
        for block in self.blocks[:mhca_blocks]:
            plain = block.attn
            block.attn = MHCA(
                self.embed_dim,
                plain.num_heads,
                self.patch_embed.grid_size,
                num_prefix=self.num_prefix_tokens,
                qkv_bias=plain.qkv.bias is not None,
                attn_drop=plain.attn_drop.p,
                proj_drop=plain.proj_drop.p,
                **options,
            )
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        self.init_weights(needs_reset=False)

    def no_weight_decay(self) -> set[str]:
        """Return names that must not decay: timm's, and every alpha and delta, which decay would make global.

        timm's rule for one-dimensional parameters does not cover delta (H, 2).
        """
        own = {name for name, _ in self.named_parameters() if name.endswith((".attn.alpha", ".attn.delta"))}
        return own | set(super().no_weight_decay())

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        """Change the resolution: positions are resampled by timm, and the bias is defined on any grid."""
        super().set_input_size(*args, **kwargs)
        for block in self.blocks:
            if isinstance(block.attn, MHCA):
                block.attn.grid = self.patch_embed.grid_size


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: int) -> DearKDVisionTransformer:
    defaults: dict[str, Any] = {"patch_size": 16, "depth": 12, "mhca_blocks": 8, "drop_path_rate": 0.1}
    model: DearKDVisionTransformer = build_vit_variant(
        DearKDVisionTransformer, variant, pretrained, **defaults | sizes | kwargs
    )
    return model


_CFG = imagenet_cfg(fixed_input_size=True, first_conv="patch_embed.proj", classifier="head")

default_cfgs = generate_default_cfgs(
    dict.fromkeys(("dearkd_tiny_patch16_224", "dearkd_small_patch16_224", "dearkd_base_patch16_224"), _CFG)
)


def dearkd_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDVisionTransformer:
    """DearKD-Ti: width 192, 12 heads, 8 blocks of MHCA and 4 of self-attention, 5,717,704 parameters."""
    return _create("dearkd_tiny_patch16_224", pretrained, kwargs, embed_dim=192, num_heads=12)


def dearkd_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDVisionTransformer:
    """DearKD-S: width 384, 12 heads, 8 blocks of MHCA and 4 of self-attention, 22,050,952 parameters."""
    return _create("dearkd_small_patch16_224", pretrained, kwargs, embed_dim=384, num_heads=12)


def dearkd_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> DearKDVisionTransformer:
    """DearKD-B: width 768, 16 heads, 8 blocks of MHCA and 4 of self-attention, 86,568,040 parameters."""
    return _create("dearkd_base_patch16_224", pretrained, kwargs, embed_dim=768, num_heads=16)


for _entry_point in (dearkd_tiny_patch16_224, dearkd_small_patch16_224, dearkd_base_patch16_224):
    register_model(_entry_point)
