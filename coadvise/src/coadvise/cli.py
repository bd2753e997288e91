"""The coadvise command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper

PAPER = Paper(
    "coadvise",
    config="coadvise.config:CoadviseConfig",
    method="coadvise.method:Coadvise",
    heads="coadvise.robustness:heads",
    layouts="coadvise.models.layouts:LAYOUTS",
)

cli = paper_group(PAPER, "Co-advise: cross inductive bias distillation from two unlike teachers (CVPR 2022).")


def main() -> NoReturn:
    """Entry point of the coadvise command."""
    run(cli)
