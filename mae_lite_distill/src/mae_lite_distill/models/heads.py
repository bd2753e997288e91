"""What is trained beside the encoder and thrown away: maps to the teacher, a block of logits, heads of methods."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from timm.layers import LayerNorm
from torch import Tensor, nn
from torch.nn import functional as F


def head_map(student_heads: int, teacher_heads: int, *, init: Literal["random", "identity"]) -> nn.Parameter:
    """Return M of eq. 3, (teacher heads, student heads), without bias.

    ``random`` is the released initialisation, that of a 1x1 convolution: uniform within 1 / sqrt(student heads).
    Raises `ValueError` for an identity between different numbers of heads.
    """
    if init == "identity":
        if student_heads != teacher_heads:
            raise ValueError(f"head_map: no identity from {student_heads} heads to {teacher_heads}")
        return nn.Parameter(torch.eye(student_heads))
    return projection(student_heads, teacher_heads)


def projection(student: int, teacher: int) -> nn.Parameter:
    """Return a matrix (teacher, student) as a linear layer without bias begins: uniform within 1 / sqrt(student)."""
    bound = student**-0.5
    return nn.Parameter(torch.empty(teacher, student).uniform_(-bound, bound))


class LogitBlock(nn.Module):
    """The 13th block of decoupled distillation: LayerNorm and qkv, nothing else, since only its logits are used.

    As released it keeps the projection of the values, which nothing reads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, l, D) to scaled logits (B, h, l, l)."""
        batch, length, _ = tokens.shape
        queries, keys, _ = (
            part.view(batch, length, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm1(tokens)).chunk(3, -1)
        )
        scale = queries.shape[-1] ** -0.5
        logits: Tensor = (queries * scale) @ keys.transpose(-2, -1)
        return logits


def mlp_head(widths: Sequence[int]) -> nn.Sequential:
    """Return a projector or predictor of MoCo-v3: Linear layers without bias, BatchNorm and ReLU between them.

    A BatchNorm without affine parameters ends it, as in the released ViT recipe.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(before, after, bias=False))
        last = index == len(widths) - 2
        layers += [nn.BatchNorm1d(after, affine=False)] if last else [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class PrototypeHead(nn.Module):
    """The head of DINO: three layers, then cosines with prototypes. They are kept at length 1, as released.

    With ``batch_norm`` there is one in front of each GELU, an option of the released code.
    """

    def __init__(self, width: int, *, hidden: int, bottleneck: int, prototypes: int, batch_norm: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in pairwise((width, hidden, hidden)):
            layers.append(nn.Linear(before, after, bias=not batch_norm))
            layers += [nn.BatchNorm1d(after), nn.GELU()] if batch_norm else [nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Linear(bottleneck, prototypes, bias=False)

    def forward(self, tokens: Tensor, trained: Tensor | None = None) -> Tensor:
        """Map class tokens (B, D) to outputs (B, K) in [-1, 1]; where ``trained`` is 0, prototypes get no gradient."""
        weight = self.prototypes.weight
        if trained is not None:
            weight = torch.lerp(weight.detach(), weight, trained)
        return F.linear(F.normalize(self.mlp(tokens), dim=-1), F.normalize(weight, dim=-1))
