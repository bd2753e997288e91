"""The dearkd command."""

from __future__ import annotations

from typing import NoReturn

from dearkd.generation.commands import diversity_command, generate_command
from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper

PAPER = Paper(
    "dearkd",
    config="dearkd.config:DearKDConfig",
    method="dearkd.method:DearKD",
    stages="dearkd.generation.stages:stages",
)

cli = paper_group(PAPER, "DearKD: early knowledge distillation from a CNN into a vision transformer (CVPR 2022).")
cli.add_command(generate_command(PAPER))
cli.add_command(diversity_command(PAPER))


def main() -> NoReturn:
    """Entry point of the dearkd command."""
    run(cli)
