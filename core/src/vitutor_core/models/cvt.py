"""CvT (Wu et al., ICCV 2021, arXiv 2103.15808): attention whose queries, keys and values are convolved, with timm.

Two flavours: ``original``, as its authors released it, and ``avg_pool``, a community re-implementation without class
token that was used for the published DRLoc results (arXiv 2106.03746). They differ in the class token, the padding of
the stem, LayerNorm, the convolution of keys and values, biases, the softmax scale, the activation, stochastic depth
and the initial weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from timm.layers import DropPath, Mlp, get_act_layer, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.models.variants import imagenet_cfg

Grid = tuple[int, int]


class StdNorm(nn.Module):
    """LayerNorm over channels that divides by ``std + eps`` where the usual one divides by ``sqrt(var + eps)``."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, tokens: Tensor) -> Tensor:
        variance, mean = torch.var_mean(tokens, dim=-1, keepdim=True, correction=0)
        return (tokens - mean) / (variance.sqrt() + self.eps) * self.weight + self.bias


class ConvAttention(nn.Module):
    """Attention with convolutional projections: depth-wise 3x3 and BatchNorm, then a linear layer.

    Keys and values are of stride ``kv_stride``. Prefix tokens pass the convolutions by. With ``shared_kv``, keys and
    values have one convolution and q, k and v no bias.
    """

    def __init__(
        self, dim: int, num_heads: int, *, head_dim: int, scale: float, shared_kv: bool, kv_stride: int = 2
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.scale = scale
        self.conv_q = _depthwise(dim, 1)
        self.conv_k = _depthwise(dim, kv_stride)
        self.conv_v = None if shared_kv else _depthwise(dim, kv_stride)
        self.q = nn.Linear(dim, inner, bias=not shared_kv)
        self.k = nn.Linear(dim, inner, bias=not shared_kv)
        self.v = nn.Linear(dim, inner, bias=not shared_kv)
        self.proj = nn.Linear(inner, dim)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map (B, P + N, dim) to the same shape; the last N = H * W tokens are a ``grid`` of (H, W)."""
        num_prefix = tokens.shape[1] - grid[0] * grid[1]
        prefix, cells = tokens[:, :num_prefix], _as_map(tokens[:, num_prefix:], grid)
        q, k = self.conv_q(cells), self.conv_k(cells)
        v = k if self.conv_v is None else self.conv_v(cells)
        q, k, v = (
            linear(torch.cat([prefix, map_.flatten(2).transpose(1, 2)], dim=1))
            .unflatten(2, (self.num_heads, -1))
            .transpose(1, 2)
            for linear, map_ in ((self.q, q), (self.k, k), (self.v, v))
        )
        values = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(values.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and MLP, each with a residual."""

    def __init__(
        self, attention: ConvAttention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attn = attention
        self.mlp = mlp
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map (B, P + N, dim) to the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), grid))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]


class Embedding(nn.Module):
    """Overlapping patches: a convolution of some stride, then a norm over channels."""

    def __init__(self, in_dim: int, dim: int, kernel: int, stride: int, padding: int, norm: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = norm

    def forward(self, map_: Tensor) -> tuple[Tensor, Grid]:
        """Map (B, C, H, W) to tokens (B, N, dim) and their grid."""
        map_ = self.conv(map_)
        return self.norm(map_.flatten(2).transpose(1, 2)), (map_.shape[2], map_.shape[3])


class Stage(nn.Module):
    """The blocks of one width."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Map (B, P + N, dim) to the same shape."""
        for block in self.blocks:
            tokens = block(tokens, grid)
        return tokens


class CvT(nn.Module):
    """Convolutional vision transformer, without position embedding, so for any input size.

    Args:
        num_classes, in_chans, drop_rate, drop_path_rate: as in timm; stochastic depth is in the last stage alone, and
            by default 0.1 in the original flavour and 0 in the other.
        flavour: see the module.
        dims, depths, num_heads, kernels, strides: per stage; paddings are those of the flavour.
        mlp_ratio: width of the MLP over the width of the stage.
        act_layer: activation of the MLP by timm's name; null: that of the flavour, x * sigmoid(1.702 x) in the original
            and GELU in the other. (The Hugging Face port of the original has GELU.)

    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        flavour: Literal["original", "avg_pool"] = "original",
        dims: Sequence[int] = (64, 192, 384),
        depths: Sequence[int] = (1, 2, 10),
        num_heads: Sequence[int] = (1, 3, 6),
        kernels: Sequence[int] = (7, 3, 3),
        strides: Sequence[int] = (4, 2, 2),
        mlp_ratio: float = 4.0,
        act_layer: str | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        original = flavour == "original"
        if flavour not in {"original", "avg_pool"}:
            raise ValueError(f"CvT: flavour {flavour!r}; valid: original, avg_pool")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.num_prefix_tokens = int(original)
        norm: type[nn.Module] = nn.LayerNorm if original else StdNorm
        activation = get_act_layer(act_layer or ("quick_gelu" if original else "gelu"))
        rate = (0.1 if original else 0.0) if drop_path_rate is None else drop_path_rate
        in_dims, last = (in_chans, *dims[:-1]), len(dims) - 1

        def block(stage: int, drop_path: float) -> Block:
            dim = dims[stage]
            head_dim = dim // num_heads[stage]
            scale = (dim if original else head_dim) ** -0.5
            attention = ConvAttention(dim, num_heads[stage], head_dim=head_dim, scale=scale, shared_kv=not original)
            mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=activation)
            return Block(attention, mlp, (norm(dim), norm(dim)), drop_path)

        self.embeddings = nn.ModuleList(
            Embedding(in_dim, dim, kernel, stride, _padding(kernel, stride, original=original), norm(dim))
            for in_dim, dim, kernel, stride in zip(in_dims, dims, kernels, strides, strict=True)
        )
        self.stages = nn.ModuleList(
            Stage([block(stage, drop) for drop in _ramp(rate if stage == last else 0.0, depth)])
            for stage, depth in enumerate(depths)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims[-1])) if original else None
        self.norm = norm(dims[-1]) if original else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dims[-1], num_classes) if num_classes > 0 else nn.Identity()
        self.feature_info = [
            {"module": f"stages.{stage}", "num_chs": dim, "reduction": math.prod(strides[: stage + 1])}
            for stage, dim in enumerate(dims)
        ]
        if original:
            self.apply(_init_weights)
            trunc_normal_(self.cls_token, std=0.02)

    @torch.jit.ignore  # type: ignore[untyped-decorator]  # timm looks for this name
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that must not decay."""
        return {"cls_token"}

    def get_classifier(self) -> nn.Module:
        """Return the linear classifier."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the final tokens and the maps (B, C, H, W) of some stages, as timm's models do.

        ``norm`` applies the final norm to the last stage's map.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"CvT: output_fmt {output_fmt!r}; valid: NCHW")
        taken, max_index = feature_take_indices(len(self.stages), indices)
        maps: list[Tensor] = []
        for index, (tokens, grid) in enumerate(self._run(images)):
            cells = self.norm(tokens) if norm and index == len(self.stages) - 1 else tokens
            if index in taken:
                maps.append(_as_map(cells[:, -grid[0] * grid[1] :], grid))
            if stop_early and intermediates_only and index == max_index:
                break
        return maps if intermediates_only else (self.norm(tokens), maps)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the final tokens (B, P + N, C), after the final norm if the flavour has one."""
        *_, (tokens, _) = self._run(images)
        return self.norm(tokens)  # type: ignore[no-any-return]

    def _run(self, images: Tensor) -> Iterator[tuple[Tensor, Grid]]:
        """Yield the tokens of each stage, those of the last with its prefix, and their grid."""
        map_ = images
        for embedding, stage in zip(self.embeddings, self.stages, strict=True):
            tokens, grid = embedding(map_)
            if stage is self.stages[-1] and self.cls_token is not None:
                tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            tokens = stage(tokens, grid)
            yield tokens, grid
            map_ = _as_map(tokens[:, -grid[0] * grid[1] :], grid)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, K) from the class token, or from the mean of the tokens where there is none."""
        pooled = tokens[:, 0] if self.num_prefix_tokens else tokens.mean(dim=1)
        pooled = self.head_drop(pooled)
        return pooled if pre_logits else self.head(pooled)  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, K)."""
        return self.forward_head(self.forward_features(images))


def _as_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def _ramp(end: float, depth: int) -> list[float]:
    return [end * index / max(depth - 1, 1) for index in range(depth)]


def _depthwise(dim: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False), nn.BatchNorm2d(dim))


def _padding(kernel: int, stride: int, *, original: bool) -> int:
    # The original's stem, kernel 7 and stride 4, is padded by 2, the other flavour's by 3.
    return (kernel - stride + 1) // 2 if original else kernel // 2


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "cvt_13": imagenet_cfg(pool_size=None, first_conv="embeddings.0.conv", classifier="head"),
    }
)


def cvt_13(pretrained: bool = False, **kwargs: Any) -> CvT:
    """CvT-13: 19,997,480 parameters; with ``flavour="avg_pool"`` 19,936,296."""
    model: CvT = build_model_with_cfg(CvT, "cvt_13", pretrained, feature_cfg={"out_indices": (0, 1, 2)}, **kwargs)
    return model


register_model(cvt_13)
