"""The bootstrapping-vit command."""

from __future__ import annotations

from vitutor_core.paper import Paper

PAPER = Paper(
    "bootstrapping_vit",
    config="bootstrapping_vit.config:BootstrappingConfig",
    method="bootstrapping_vit.method:BootstrappingViT",
    summary="Bootstrapping ViTs: a vision transformer trained together with its agent CNN (CVPR 2022).",
    layouts="bootstrapping_vit.models.layouts:LAYOUTS",
)
main = PAPER.main
