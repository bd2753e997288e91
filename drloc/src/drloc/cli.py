"""The drloc command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper

PAPER = Paper(
    "drloc",
    config="drloc.config:DRLocConfig",
    method="drloc.method:DRLocMethod",
    term="drloc.compose:beside",
)

cli = paper_group(PAPER, "DRLoc: a dense relative localisation loss beside cross-entropy (NeurIPS 2021).")


def main() -> NoReturn:
    """Entry point of the drloc command."""
    run(cli)
