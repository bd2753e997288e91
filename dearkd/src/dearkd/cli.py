"""The dearkd command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import Paper, paper_group

PAPER = Paper("dearkd", config="dearkd.config:DearKDConfig", method="dearkd.method:DearKD")

cli = paper_group(PAPER, "DearKD: early knowledge distillation from a CNN into a vision transformer (CVPR 2022).")


def main() -> NoReturn:
    """Entry point of the dearkd command."""
    run(cli)
