"""Parts around a plain timm vision transformer, and one with relative positions to fine-tune."""

from __future__ import annotations

from mae_lite_distill.models.decoder import Decoder
from mae_lite_distill.models.encoder import (
    Encoded,
    Masking,
    check_encoder,
    encode,
    encode_hidden,
    encode_logits,
    random_masking,
)
from mae_lite_distill.models.heads import LogitBlock, head_map, mlp_head, projection
from mae_lite_distill.models.positions import freeze_positions, sincos_positions
from mae_lite_distill.models.relative import RelativeVisionTransformer
from mae_lite_distill.models.start import build_from_encoder

__all__ = [
    "Decoder",
    "Encoded",
    "LogitBlock",
    "Masking",
    "RelativeVisionTransformer",
    "build_from_encoder",
    "check_encoder",
    "encode",
    "encode_hidden",
    "encode_logits",
    "freeze_positions",
    "head_map",
    "mlp_head",
    "projection",
    "random_masking",
    "sincos_positions",
]
