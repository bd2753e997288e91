"""T2T-ViT (Yuan et al., ICCV 2021, arXiv 2101.11986) with performers as token transformers, registered with timm.

The tokens-to-token module is a patch embedding for timm's `VisionTransformer`: overlapping windows, a small attention
of linear cost, windows again. So the backbone has all that timm's ViTs have.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitutor_core.models.variants import imagenet_cfg


class TokenPerformer(nn.Module):
    """One-head attention of linear cost by positive random features (Choromanski et al., arXiv 2009.14794), and an MLP.

    phi(x) = exp(Wx - |x|^2 / 2) / sqrt(features), with a frozen W of orthogonal rows; the attention of q, k, v is
    phi(q) (sum_t phi(k_t) v_t) / (phi(q) sum_t phi(k_t)), computed in float32. The residual is v, since the width
    changes from ``dim`` to ``width``.
    """

    def __init__(self, dim: int, width: int, *, features: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.kqv = nn.Linear(dim, 3 * width)
        self.projection = nn.Parameter(torch.empty(features, width), requires_grad=False)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.drop = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Draw the random features; timm's initialisation calls this, and sets the linear layers itself."""
        nn.init.orthogonal_(self.projection, gain=math.sqrt(len(self.projection)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, dim) to (B, N, width)."""
        k, q, v = self.kqv(self.norm1(tokens)).chunk(3, dim=-1)
        tokens = v + self.drop(self.proj(self._attend(q, k, v)))
        return tokens + self.drop(self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        device = "cpu" if q.is_meta else q.device.type  # autocast knows no meta device
        with torch.autocast(device, enabled=False):  # the exponentials overflow half precision
            q, k = self._phi(q), self._phi(k)
            total = (q * k.sum(dim=1, keepdim=True)).sum(dim=-1, keepdim=True)
            values = k.transpose(1, 2) @ v.to(k.dtype)
            return (q @ values / (total + 1e-8)).to(v.dtype)

    def _phi(self, x: Tensor) -> Tensor:
        x = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
        scores = x @ self.projection.to(x.dtype).T
        return torch.exp(scores - x.square().sum(dim=-1, keepdim=True) / 2) / math.sqrt(len(self.projection))


class TokensToToken(nn.Module):
    """Windows, performer, windows, performer, windows, linear: from an image to tokens, as a timm patch embedding.

    Paddings are such that a stride s divides the side by s.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        *,
        in_chans: int = 3,
        embed_dim: int = 384,
        bias: bool = True,
        kernels: tuple[int, int, int] = (7, 3, 3),
        strides: tuple[int, int, int] = (4, 2, 2),
        token_dim: int = 64,
        random_features: int = 32,
    ) -> None:
        super().__init__()
        self._stride = math.prod(strides)
        self.img_size: tuple[int, int] = to_2tuple(img_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        if any(side % self._stride for side in self.img_size):
            raise ValueError(
                f"T2T-ViT: {img_size} pixels a side are not a multiple of the strides' product {self._stride}"
            )
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.windows = nn.ModuleList(
            nn.Unfold(kernel, stride=stride, padding=(kernel - stride + 1) // 2)
            for kernel, stride in zip(kernels, strides, strict=True)
        )
        self.strides = tuple(strides)
        widths = [in_chans * kernels[0] ** 2, token_dim * kernels[1] ** 2, token_dim * kernels[2] ** 2]
        self.performers = nn.ModuleList(
            TokenPerformer(width, token_dim, features=random_features) for width in widths[:2]
        )
        self.proj = nn.Linear(widths[2], embed_dim, bias=bias)

    def feat_ratio(self) -> int:
        """Return the pixels per token, in each direction."""
        return self._stride

    def dynamic_feat_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of tokens of an image of (height, width) pixels."""
        return size[0] // self._stride, size[1] // self._stride

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, N, embed_dim), row by row."""
        if images.shape[-2:] != self.img_size:
            raise ValueError(f"T2T-ViT: images of {tuple(images.shape[-2:])} pixels, built for {self.img_size}")
        height, width = self.img_size
        for number, (windows, stride) in enumerate(zip(self.windows, self.strides, strict=True)):
            tokens = windows(images).transpose(1, 2)
            if number < len(self.performers):
                height, width = height // stride, width // stride
                tokens = self.performers[number](tokens)
                images = tokens.transpose(1, 2).unflatten(2, (height, width))
        return self.proj(tokens)  # type: ignore[no-any-return]


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def sinusoid_positions(positions: int, dim: int) -> Tensor:
    """Return the fixed position table (positions, dim) of the angles p / 10000^(2 [j / 2] / dim).

    Even columns j hold their sine, odd ones their cosine.
    """
    column = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (2 * (column // 2) / dim)
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float()


def _t2t(
    *,
    kernels: tuple[int, int, int] = (7, 3, 3),
    strides: tuple[int, int, int] = (4, 2, 2),
    token_dim: int = 64,
    random_features: int = 32,
    qk_scale: float | None = None,
    **kwargs: Any,
) -> VisionTransformer:
    def embed(*, img_size: int | tuple[int, int], in_chans: int, embed_dim: int, bias: bool, **_: Any) -> TokensToToken:
        return TokensToToken(
            img_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            bias=bias,
            kernels=kernels,
            strides=strides,
            token_dim=token_dim,
            random_features=random_features,
        )

    model = VisionTransformer(embed_layer=embed, **kwargs)
    positions: Tensor = model.pos_embed
    with torch.no_grad():
        positions.copy_(sinusoid_positions(*positions.shape[1:]))
        nn.init.trunc_normal_(model.cls_token, std=0.02)  # timm's is almost zero
    positions.requires_grad_(False)
    if qk_scale is not None:
        for block in model.blocks:
            # timm's fused attention has no scale of its own, but multiplies by head_dim ** -0.5.
            block.attn.q_norm = _Scale(qk_scale / block.attn.scale)
    return model


default_cfgs = generate_default_cfgs(
    {
        "t2t_vit_14": imagenet_cfg(
            pool_size=None, crop_pct=0.9, fixed_input_size=True, first_conv=(), classifier="head"
        ),
    }
)


def t2t_vit_14(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """T2T-ViT-14: 14 blocks of width 384 on a fixed sinusoid; 21,465,806 trainable parameters of 21,545,550.

    Besides timm's arguments of a ViT: ``kernels``, ``strides``, ``token_dim`` and ``random_features`` of the
    tokens-to-token module, for other input sizes; ``qk_scale``, the factor before the softmax, which is 384 ** -0.5
    for the authors' published weights and head_dim ** -0.5 otherwise.
    """
    defaults: dict[str, Any] = {
        "embed_dim": 384,
        "depth": 14,
        "num_heads": 6,
        "mlp_ratio": 3.0,
        "qkv_bias": False,
        "norm_layer": nn.LayerNorm,  # with an epsilon of 1e-5, unlike timm's ViT
    }
    model: VisionTransformer = build_model_with_cfg(_t2t, "t2t_vit_14", pretrained, **defaults | kwargs)
    return model


register_model(t2t_vit_14)
