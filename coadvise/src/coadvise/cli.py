"""The coadvise command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

import click

from vitutor_core.cli import options
from vitutor_core.cli.entry import run
from vitutor_core.cli.paper import paper_group
from vitutor_core.paper import Paper, load

PAPER = Paper(
    "coadvise",
    config="coadvise.config:CoadviseConfig",
    method="coadvise.method:Coadvise",
    plain_row="none",
    method_rows=("cnn_inn",),
    stages="coadvise.stages:stages",
)

cli = paper_group(PAPER, "Co-advise: cross inductive bias distillation from two unlike teachers (CVPR 2022).")


@cli.command("robustness")
@click.argument("run_folder", metavar="RUN", type=options.PathOption(exists=True, file_okay=False))
@click.option(
    "--images",
    type=options.PathOption(exists=True, file_okay=False),
    help="A folder per class, some or all of the model's: ImageNet-A, -R, a set of -C.  [default: RUN's, corrupted]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@options.stage_plan
@click.option("--out", type=options.PathOption(file_okay=False), help="Write the figures of a row's runs there.")
def robustness(run_folder: Path, images: Path | None, device: str, plan: Path | None, out: Path | None) -> None:
    """Evaluate the finished RUN, a student's or a teacher's, out of distribution.

    With --out, RUN is what `reproduce` published of a row; every head of each of its runs is measured on the folders
    imagenet-a, imagenet-r and imagenet-c of VITUTOR_DATA_ROOT.
    """
    if out is not None:
        load("coadvise.robustness:measure_row")(run_folder, out, device, plan)
        return
    load(PAPER.method)  # registers the paper's models with timm
    measure = load("vitutor_core.evaluate.shifts:evaluate_robustness")
    click.echo(json.dumps(measure(run_folder, images, device), indent=2))


def main() -> NoReturn:
    """Entry point of the coadvise command."""
    run(cli)
