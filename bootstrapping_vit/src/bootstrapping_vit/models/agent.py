"""The agent CNN of a ViT: its attention replaced by CONV, its FFN by 1x1 convolutions (Bootstrapping ViTs, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from timm.layers import Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from bootstrapping_vit.models.conv import Conv
from vitutor_core.models.variants import imagenet_cfg

STEM_STRIDES = {16: (2, 2, 2), 8: (2, 1, 2), 4: (1, 1, 2), 2: (1, 1, 1)}
"""Strides of first convolution, max-pooling and second convolution by the side of the ViT's patches.

Their product is half of the patch: the res-like agent starts on a grid of twice the ViT's side. 16 is the paper's.
"""
SLIP_MEAN, SLIP_STD = 1e-6, 1.0
"""N(1e-6, 1) is the released initialisation of some biases; one would expect N(0, 1e-6)."""


class AgentBlock(nn.Module):
    """A layer of the agent: CONV and MLP, each a residual branch with BatchNorm.

    The agent of ViT-S normalises in front of a branch, ``x + CONV(BN(x))``, that of ViT-B behind it,
    ``x + BN(CONV(x))``, as in the released code.
    """

    def __init__(self, dim: int, conv: nn.Module, mlp: nn.Module, *, pre_norm: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = nn.BatchNorm2d(dim)
        self.conv = conv
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = mlp
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, d, h, w) to the same shape."""
        if self.pre_norm:
            x = x + self.drop(self.conv(self.norm1(x)))
            x = x + self.drop(self.mlp(self.norm2(x)))
        else:
            x = x + self.drop(self.norm1(self.conv(x)))
            x = x + self.drop(self.norm2(self.mlp(x)))
        return x


class AgentCNN(nn.Module):
    """The agent CNN, alone or as the partner of a ViT of the same width, depth and heads.

    It has timm's ``forward_features``, ``forward_intermediates`` and ``forward_head``; the maps of the layers are taken
    before the down-sampling that follows a layer, as in the released code.

    Args:
        num_classes: K.
        in_chans: channels of the images.
        patch_size: the patch of the ViT whose agent this is.
        embed_dim: width d.
        depth: number of layers.
        num_heads: H, the taps of CONV.
        mlp_ratio: hidden width of the MLP over d.
        stem: ``res``: ResNet's stem, a pyramid; ``base``: the ViT's patch embedding, one grid throughout.
        down: layers, counted from 0, after which a res-like agent averages 2x2 positions.
        pre_norm: see `AgentBlock`.
        mlp_drop_rate: dropout of the MLP's hidden layer.
        stem_width: channels between the convolutions of the res-like stem.
        init: ``standard``: Xavier and zero biases; ``official``: with the standard deviation of 1 that the released
            code gives to biases of MLP and stem, and to the kernel of the base stem.
        tap_after_down: give the maps after the down-sampling, as Fig. 2 draws it.

    Raises:
        ValueError: ``down`` names no inner layer, or there is no stem for the patch size.

    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        patch_size: int = 16,
        embed_dim: int = 288,
        depth: int = 6,
        num_heads: int = 9,
        mlp_ratio: float = 4.0,
        stem: Literal["res", "base"] = "res",
        down: Sequence[int] = (),
        pre_norm: bool = True,
        mlp_drop_rate: float = 0.1,
        stem_width: int = 64,
        init: Literal["standard", "official"] = "standard",
        tap_after_down: bool = False,
    ) -> None:
        super().__init__()
        if stem == "base":
            down = ()
        if any(not 0 <= layer < depth - 1 for layer in down):
            raise ValueError(f"down = {list(down)}: an agent of {depth} layers is pooled after layers 0 to {depth - 2}")
        if stem not in {"base", "res"} or init not in {"standard", "official"}:
            raise ValueError(f"stem = {stem!r}, init = {init!r}; choose res or base, standard or official")
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.tap_after_down = tap_after_down
        self.down = frozenset(down)
        if stem == "res":
            self.stem: nn.Module = res_stem(in_chans, stem_width, embed_dim, patch_size)
        else:
            self.stem = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size)
        self.blocks = nn.ModuleList(
            AgentBlock(
                embed_dim,
                Conv(embed_dim, num_heads),
                Mlp(embed_dim, int(embed_dim * mlp_ratio), drop=(mlp_drop_rate, 0.0), use_conv=True),
                pre_norm=pre_norm,
            )
            for _ in range(depth)
        )
        self.pool = nn.AvgPool2d(2)
        self.norm = nn.BatchNorm2d(embed_dim)
        self.act = nn.GELU()
        self.head = nn.Linear(embed_dim, num_classes)
        reduction = patch_size if stem == "base" else patch_size // 2
        self.feature_info = []
        for layer in range(depth):
            self.feature_info.append({"module": f"blocks.{layer}", "num_chs": embed_dim, "reduction": reduction})
            reduction *= 2 if layer in self.down else 1
        self._init_weights(official=init == "official")

    def _init_weights(self, *, official: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, SLIP_MEAN, SLIP_STD) if official else nn.init.zeros_(module.bias)
        if isinstance(self.stem, nn.Conv2d):
            init_patch_projection(self.stem, official=official)

    def forward_features(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) to the normalised and activated last map (B, d, h, w)."""
        return self.forward_intermediates(images, indices=())[0]

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return what `forward_features` returns, and the maps of the layers ``indices``, in ascending order."""
        maps = []
        x = self.stem(images)
        for layer, block in enumerate(self.blocks):
            x = block(x)
            before = x
            if layer in self.down:
                x = self.pool(x)
            if layer in indices:
                maps.append(x if self.tap_after_down else before)
        return self.act(self.norm(x)), maps

    def forward_head(self, features: Tensor) -> Tensor:
        """Pool the map of `forward_features` and return logits (B, K)."""
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def res_stem(in_chans: int, width: int, dim: int, patch_size: int) -> nn.Sequential:
    """Build ResNet's stem and a strided convolution to ``dim`` channels; see `STEM_STRIDES`.

    Raises:
        ValueError: there are no strides for the patch size.

    """
    if patch_size not in STEM_STRIDES:
        raise ValueError(f"patch_size = {patch_size}: the res-like stem is for {', '.join(map(str, STEM_STRIDES))}")
    first, pool, second = STEM_STRIDES[patch_size]
    # A 7x7 kernel belongs to a stride of 2; without one it would see a quarter of a 32-pixel image.
    kernel = 7 if first == 2 else 3
    return nn.Sequential(
        nn.Conv2d(in_chans, width, kernel, stride=first, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.GELU(),
        nn.MaxPool2d(3, stride=pool, padding=1) if pool > 1 else nn.Identity(),
        nn.Conv2d(width, dim, 3, stride=second, padding=1),
    )


def init_patch_projection(conv: nn.Conv2d, *, official: bool) -> None:
    """Initialise a patch embedding: Xavier on the (d, inputs) matrix, or N(0, 1) as in the released code."""
    if official:
        nn.init.normal_(conv.weight)
    else:
        nn.init.xavier_uniform_(conv.weight.view(len(conv.weight), -1))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **defaults: Any) -> AgentCNN:
    model: AgentCNN = build_model_with_cfg(AgentCNN, variant, pretrained, **defaults | kwargs)
    return model


_CFG = imagenet_cfg(interpolation="bilinear", first_conv="stem.0", classifier="head")

default_cfgs = generate_default_cfgs({"bootstrapping_agent_s": _CFG, "bootstrapping_agent_b": _CFG})


def bootstrapping_agent_s(pretrained: bool = False, **kwargs: Any) -> AgentCNN:
    """Agent of ViT-S: res-like, full 3x3 kernels, 8,656,746 parameters with 10 classes.

    ``down=(1, 4)`` gives the 3.37 GFLOPs of the paper's Table 1; the released YAML says (0, 1), which gives 1.91.
    """
    return _create("bootstrapping_agent_s", pretrained, kwargs, down=(1, 4))


def bootstrapping_agent_b(pretrained: bool = False, **kwargs: Any) -> AgentCNN:
    """Agent of ViT-B: res-like, six taps, 25,054,410 parameters with 10 classes."""
    sizes = {"embed_dim": 384, "depth": 12, "num_heads": 6}
    return _create("bootstrapping_agent_b", pretrained, kwargs, **sizes, down=(2, 8), pre_norm=False)


for _entry_point in (bootstrapping_agent_s, bootstrapping_agent_b):
    register_model(_entry_point)
