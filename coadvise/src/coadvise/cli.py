"""The coadvise command."""

from __future__ import annotations

from vitutor_core.paper import Paper

PAPER = Paper(
    "coadvise",
    config="coadvise.config:CoadviseConfig",
    method="coadvise.method:Coadvise",
    summary="Co-advise: cross inductive bias distillation from two unlike teachers (CVPR 2022).",
    heads="coadvise.robustness:heads",
    layouts="coadvise.models.layouts:LAYOUTS",
)
main = PAPER.main
