"""Masked pre-training, and its distillation, in a training loop of one's own."""

from __future__ import annotations

from typing import Any

from mae_lite_distill.config import MAEConfig
from mae_lite_distill.methods.masked import MaskedPretraining
from mae_lite_distill.models.encoder import check_encoder
from vitutor_core.train.objective import Objective, describe, frozen


class MaskedAutoencoder(Objective):
    """An encoder and its decoder; with a teacher, eq. 3 as well. It takes images alone.

    The encoder starts afresh, as MAE initialises it, with fixed positions.

    Args:
        encoder: a plain vision transformer of timm, whose head is not trained.
        teacher: a larger one, pre-trained in the same way, on the same grid of patches.
        config: masking, decoder and distillation; with a teacher, by default its last block that the encoder has too.

    Raises:
        ConfigError: the models do not fit.

    """

    def __init__(self, encoder: Any, teacher: Any = None, config: MAEConfig | None = None) -> None:
        check_encoder(encoder, "encoder")
        info = describe(encoder)
        if teacher is not None:
            check_encoder(teacher, "teacher")
            last = min(len(encoder.blocks), len(teacher.blocks))
            config = config or MAEConfig(distill_layers=(last,))
        of_encoder = None if teacher is None else lambda: frozen(teacher, info)
        super().__init__(MaskedPretraining.paired(encoder, config or MAEConfig(), info, teacher=of_encoder))
