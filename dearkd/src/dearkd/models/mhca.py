"""Multi-head convolutional attention: self-attention with a learnt quadratic position bias (DearKD, eq. 2 and 3)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import torch
from timm.layers import resolve_self_attn_mask
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.models.bias import RPE_INITS, relative_bias


class MHCA(nn.Module):
    """Multi-head convolutional attention, DearKD (arXiv 2204.12997) eq. 2 and 3.

        A^h = softmax(q^h k^hT / sqrt(C / H) + b^h),   MHCA(X) = concat_h(A^h X W_V^h) W_O + b_O

    with b^h of `relative_bias`. It stands where timm's ``Attention`` stands and its weights have the same names, so a
    DeiT state dict lacks only ``alpha`` (H,) and ``delta`` (H, 2). With alpha = 0 it is plain self-attention.
    The paper prints eq. 3 without the transpose, the scale and the output projection; they are DeiT's.

    Args:
        dim: width C of the tokens.
        num_heads: H.
        grid: (h, w) patches.
        num_prefix: tokens in front of the patches, with bias 0.
        qkv_bias: whether the query, key and value projections have a bias.
        attn_drop: dropout of the attention probabilities.
        proj_drop: dropout of the output.
        rpe_drop: dropout of the bias while training; the paper names the layer but neither its rate nor its axis.
        rpe_drop_mode: ``head``: the whole bias of a head becomes 0 for the batch, without rescaling, and the head
            attends by content. ``element``: ordinary dropout of the entries, the literal reading, which sends attention
            to random patches.
        rpe_init: a name of `RPE_INITS`.
        learn_delta: whether ``delta`` is a parameter; else it is a buffer of the same name.
        alpha_param: ``softplus``: the parameter ``alpha`` is the raw value, and its softplus the strength.
        value_identity_init: initialise W_V as the identity, as ConViT does.
        attn_impl: ``sdpa``: torch's fused attention; ``math``: explicit softmax, for cases the kernels do not support.

    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        *,
        num_prefix: int = 1,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        rpe_drop: float = 0.1,
        rpe_drop_mode: Literal["head", "element"] = "head",
        rpe_init: str = "disc",
        learn_delta: bool = True,
        alpha_param: Literal["free", "softplus"] = "free",
        value_identity_init: bool = False,
        attn_impl: Literal["sdpa", "math"] = "sdpa",
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"MHCA: width {dim} is not a multiple of {num_heads} heads")
        _check("rpe_drop_mode", rpe_drop_mode, ("head", "element"))
        _check("rpe_init", rpe_init, RPE_INITS)
        _check("alpha_param", alpha_param, ("free", "softplus"))
        _check("attn_impl", attn_impl, ("sdpa", "math"))
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.grid = grid
        self.num_prefix = num_prefix
        self.rpe_drop = rpe_drop
        self.rpe_drop_mode = rpe_drop_mode
        self.rpe_init = rpe_init
        self.alpha_param = alpha_param
        self.value_identity_init = value_identity_init
        self.fused_attn = attn_impl == "sdpa"

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.alpha = nn.Parameter(torch.empty(num_heads))
        self.delta: Tensor
        if learn_delta:
            self.delta = nn.Parameter(torch.empty(num_heads, 2))
        else:
            self.register_buffer("delta", torch.empty(num_heads, 2))
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Set ``alpha`` and ``delta``; timm calls it after it has initialised the projections."""
        alpha, delta = RPE_INITS[self.rpe_init](self.num_heads)
        if self.alpha_param == "softplus":
            alpha = alpha.expm1().log()
        self.alpha.copy_(alpha)
        self.delta.copy_(delta)
        if self.value_identity_init:
            nn.init.eye_(self.qkv.weight[-self.qkv.in_features :])

    def position_bias(self) -> Tensor:
        """Return the bias of the logits, (1, H, N, N) in float32 or wider, without dropout."""
        alpha = F.softplus(self.alpha) if self.alpha_param == "softplus" else self.alpha
        return relative_bias(alpha, self.delta, self.grid, self.num_prefix)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend over tokens ``x`` (B, N, C); mask and causality are those of timm's ``Attention``.

        Raises:
            ValueError: N is not the number of tokens of the grid.

        """
        batch, tokens, dim = x.shape
        if tokens != self.num_prefix + self.grid[0] * self.grid[1]:
            raise ValueError(f"MHCA: {tokens} tokens do not fit the grid {self.grid} with {self.num_prefix} in front")
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._drop_bias(self.position_bias()).to(q.dtype)
        mask = resolve_self_attn_mask(tokens, q, attn_mask, is_causal)
        if mask is not None:
            bias = bias + mask
        # Exported, the fused operator falls apart into parts whose memory layout is not the one it was traced with.
        if self.fused_attn and not torch.compiler.is_exporting():
            dropout = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
        else:
            logits = (q * self.scale) @ k.transpose(-2, -1) + bias
            x = self.attn_drop(logits.softmax(dim=-1)) @ v
        mixed: Tensor = self.proj_drop(self.proj(x.transpose(1, 2).reshape(batch, tokens, dim)))
        return mixed

    def _drop_bias(self, bias: Tensor) -> Tensor:
        if not self.training or self.rpe_drop == 0:
            return bias
        if self.rpe_drop_mode == "element":
            return F.dropout(bias, self.rpe_drop)
        # Shared by the batch, so that the bias is not expanded to (B, H, N, N).
        return bias * bias.new_empty(1, self.num_heads, 1, 1).bernoulli_(1 - self.rpe_drop)


def _check(option: str, value: str, valid: Collection[str]) -> None:
    if value not in valid:
        raise ValueError(f"{option} = {value!r}; choose one of {', '.join(valid)}")
