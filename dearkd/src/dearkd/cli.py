"""The dearkd command."""

from __future__ import annotations

from vitutor_core.paper import Paper

PAPER = Paper(
    "dearkd",
    config="dearkd.config:DearKDConfig",
    method="dearkd.method:DearKD",
    summary="DearKD: early knowledge distillation from a CNN into a vision transformer (CVPR 2022).",
    commands=("dearkd.generation.commands:generate", "dearkd.generation.commands:diversity"),
    stages="dearkd.generation.stages:stages",
)
main = PAPER.main
