"""The bootstrapping-vit command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper

PAPER = Paper(
    "bootstrapping_vit",
    config="bootstrapping_vit.config:BootstrappingConfig",
    method="bootstrapping_vit.method:BootstrappingViT",
    layouts="bootstrapping_vit.models.layouts:LAYOUTS",
)

cli = paper_group(PAPER, "Bootstrapping ViTs: a vision transformer trained together with its agent CNN (CVPR 2022).")


def main() -> NoReturn:
    """Entry point of the bootstrapping-vit command."""
    run(cli)
