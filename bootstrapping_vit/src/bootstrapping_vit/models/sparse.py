"""Sparse attention: alpha-entmax in place of the softmax, the baseline "Sparse" of the paper's tables."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, maybe_add_mask, resolve_self_attn_mask
from torch import Tensor, nn

from vitutor_core.errors import ConfigError


class EntmaxAttention(Attention):  # type: ignore[misc]  # timm has no type information
    """Self-attention with alpha-entmax (Correia et al., arXiv 1909.00015) and one learnt ``alpha`` for all heads.

    ``alpha`` starts at 1.5 and is not constrained, as in the released code. The probabilities are computed in float32
    or wider, by bisection.

    Raises:
        ConfigError: the package entmax is not installed.

    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            from entmax import entmax_bisect  # type: ignore[import-untyped]  # it has no type information
        except ImportError:
            raise ConfigError("attention=entmax needs a package: pip install entmax") from None
        super().__init__(*args, **kwargs)
        self.alpha = nn.Parameter(torch.tensor(1.5))
        self.fused_attn = False
        self._entmax = entmax_bisect

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over tokens ``x`` (B, N, d); mask and causality are those of timm's ``Attention``."""
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = maybe_add_mask(scores, resolve_self_attn_mask(tokens, scores, attn_mask, is_causal))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        # Each step of the bisection gives a bit; the released code always makes 50.
        bits = 24 if scores.dtype == torch.float32 else 50
        attention = self._entmax(scores, self.alpha.to(scores.dtype), dim=-1, n_iter=bits)
        attention = self.attn_drop(attention.to(v.dtype))
        mixed: Tensor = self.proj_drop(self.proj((attention @ v).transpose(1, 2).reshape(batch, tokens, dim)))
        return mixed
