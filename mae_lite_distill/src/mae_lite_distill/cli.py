"""The mae-lite-distill command."""

from __future__ import annotations

from typing import NoReturn

from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper

PAPER = Paper(
    "mae_lite_distill",
    config="mae_lite_distill.config:MAELiteConfig",
    method="mae_lite_distill.method:MAELite",
    layouts="mae_lite_distill.models.layouts:LAYOUTS",
)

cli = paper_group(PAPER, "MAE-Lite: masked pre-training of small vision transformers, with attention distillation.")


def main() -> NoReturn:
    """Entry point of the mae-lite-distill command."""
    run(cli)
