"""The losses of MAE-Lite, one file per term."""

from __future__ import annotations

from mae_lite_distill.losses.attention import attention_loss
from mae_lite_distill.losses.contrast import contrastive_loss
from mae_lite_distill.losses.hidden import hidden_loss
from mae_lite_distill.losses.masked_l1 import masked_l1_loss
from mae_lite_distill.losses.pixels import patchify, pixel_loss, unpatchify
from mae_lite_distill.losses.self_distillation import self_distillation_loss
from mae_lite_distill.losses.similarity import similarity_loss

__all__ = [
    "attention_loss",
    "contrastive_loss",
    "hidden_loss",
    "masked_l1_loss",
    "patchify",
    "pixel_loss",
    "self_distillation_loss",
    "similarity_loss",
    "unpatchify",
]
