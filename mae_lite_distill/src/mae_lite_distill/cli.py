"""The mae-lite-distill command."""

from __future__ import annotations

from vitutor_core.paper import Paper

PAPER = Paper(
    "mae_lite_distill",
    config="mae_lite_distill.config:MAELiteConfig",
    method="mae_lite_distill.method:MAELite",
    summary="MAE-Lite: masked pre-training of small vision transformers, with attention distillation.",
    layouts="mae_lite_distill.models.layouts:LAYOUTS",
)
main = PAPER.main
