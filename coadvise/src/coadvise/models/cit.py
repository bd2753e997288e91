"""CiT (Co-advise, arXiv 2106.12378, section 3), registered with timm: a ViT with a token and a head per teacher."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from coadvise.models.stems import StemEmbed
from vitutor_core.models.variants import build_vit_variant, imagenet_cfg


class CiT(VisionTransformer):  # type: ignore[misc]  # timm has no type information
    """timm's ``VisionTransformer`` with ``teacher_tokens`` further tokens behind the class token, each with a head.

    Attention is untouched. Every token has a learnt position. In training, the forward pass returns a tuple of logits
    (B, K), the class token's first; in evaluation one tensor, by ``predict``.

    Args:
        teacher_tokens: further tokens; 2 is CiT, 1 DeiT's distilled form, 0 a plain ViT.
        stems: ``("conv", "inv")`` aligns the tokens (CiT-SA and CiT-SAK, see `StemEmbed`), one of the two is an
            ablation; empty: linear patch embedding and learnt tokens.
        predict: ``mean`` of all logits, the released code's reading, or a token's index: 0 is the paper's class token.
        **kwargs: options of ``VisionTransformer``.

    Raises:
        ValueError: the number of stems is not that of the tokens, or ``predict`` names no token.

    """

    def __init__(
        self,
        *,
        teacher_tokens: int = 2,
        stems: tuple[str, ...] = (),
        predict: Literal["mean"] | int = "mean",
        **kwargs: Any,
    ) -> None:
        weight_init = kwargs.pop("weight_init", "")
        if stems:
            if len(stems) != teacher_tokens:
                raise ValueError(f"{len(stems)} stems for {teacher_tokens} teacher tokens; each token needs its own")
            kwargs["embed_layer"] = partial(StemEmbed, tuple(stems))
        if predict != "mean" and not (isinstance(predict, int) and 0 <= predict <= teacher_tokens):
            raise ValueError(f"predict is {predict!r}; write mean, or a token from 0 to {teacher_tokens}")
        # To timm, the teachers' tokens are registers.
        super().__init__(**kwargs, reg_tokens=teacher_tokens, weight_init="skip")
        if stems:
            self.reg_token = None  # the stems' means take its place
        self.predict = predict
        self.teacher_heads = nn.ModuleList(self._head() for _ in range(teacher_tokens))
        self.weight_init_mode = "reset" if weight_init == "skip" else weight_init
        self.init_weights(needs_reset=False)

    def _head(self) -> nn.Module:
        return nn.Linear(self.embed_dim, self.num_classes) if self.num_classes > 0 else nn.Identity()

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as timm's ViT, with tokens from a truncated normal of standard deviation 0.02."""
        super().init_weights(mode, needs_reset)
        for token in (self.cls_token, self.reg_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def token_logits(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Map final tokens (B, 1 + n + N, D) to the logits (B, K) of the class token and the n teachers' tokens."""
        heads = (self.head, *self.teacher_heads)
        return tuple(head(self.head_drop(tokens[:, index])) for index, head in enumerate(heads))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of all tokens in training, the prediction in evaluation; or the mean of the tokens."""
        if pre_logits:
            return x[:, : self.num_prefix_tokens].mean(1)
        logits = self.token_logits(x)
        if self.training:
            return logits
        return torch.stack(logits).mean(0) if self.predict == "mean" else logits[self.predict]

    def get_classifier(self) -> nn.ModuleList:
        return nn.ModuleList([self.head, *self.teacher_heads])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give every token a fresh head."""
        super().reset_classifier(num_classes, global_pool)
        self.teacher_heads = nn.ModuleList(self._head() for _ in self.teacher_heads)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> CiT:
    model: CiT = build_vit_variant(CiT, variant, pretrained, **{"patch_size": 16, "depth": 12} | defaults | kwargs)
    return model


def _cfg(first_conv: str | tuple[str, ...]) -> dict[str, Any]:
    return imagenet_cfg(fixed_input_size=True, first_conv=first_conv, classifier=("head", "teacher_heads"))


default_cfgs = generate_default_cfgs(
    {
        "cit_tiny_patch16_224": _cfg("patch_embed.proj"),
        "cit_small_patch16_224": _cfg("patch_embed.proj"),
        "cit_small_aligned_patch16_224": _cfg(("patch_embed.stems.conv.0", "patch_embed.stems.inv.0")),
    }
)


def cit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> CiT:
    """CiT-Ti: width 192, 3 heads, two teachers' tokens, 6,104,184 parameters."""
    return _create("cit_tiny_patch16_224", pretrained, kwargs, embed_dim=192, num_heads=3)


def cit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> CiT:
    """CiT-S: width 384, 6 heads, two teachers' tokens, 22,822,200 parameters."""
    return _create("cit_small_patch16_224", pretrained, kwargs, embed_dim=384, num_heads=6)


def cit_small_aligned_patch16_224(pretrained: bool = False, **kwargs: Any) -> CiT:
    """CiT-SA and CiT-SAK: CiT-S with both stems, 25,776,138 parameters."""
    return _create(
        "cit_small_aligned_patch16_224", pretrained, kwargs, embed_dim=384, num_heads=6, stems=("conv", "inv")
    )


for _entry_point in (cit_tiny_patch16_224, cit_small_patch16_224, cit_small_aligned_patch16_224):
    register_model(_entry_point)
