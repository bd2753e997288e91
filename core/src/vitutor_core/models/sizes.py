"""The sizes of a vision transformer, from its name and arguments."""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer

from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_model
from vitutor_core.schema import ModelConfig


class StudentSizes(NamedTuple):
    """Sizes of the common student, a vision transformer; ``wide`` is twice its width."""

    patch_size: int
    embed_dim: int
    wide: int
    depth: int
    num_heads: int
    mlp_ratio: float


def student_sizes(config: ModelConfig, image_size: int) -> StudentSizes:
    """Build a vision transformer on the meta device and read its sizes; raises `ConfigError` for another model."""
    with torch.device("meta"):
        model = create_model(config.changed(["pretrained=false"]), num_classes=2, image_size=image_size, channels=3)
    if not isinstance(model, VisionTransformer):
        raise ConfigError(
            f"student.name: {config.name} is no vision transformer of timm's; name one, as vit_tiny_patch16_224"
        )
    block = model.blocks[0]
    return StudentSizes(
        patch_size=model.patch_embed.patch_size[0],
        embed_dim=model.embed_dim,
        wide=2 * model.embed_dim,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
    )
