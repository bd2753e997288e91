"""vitutor analyze: what the layers of one or two trained models have in common, and where their heads look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.graph.planned import left_out


@click.command("analyze")
@click.argument("models", nargs=-1, required=True, type=options.PathOption())
@click.option("--source", help="Data source of the images, as data.source.  [default: that of the first run]")
@click.option("--images", type=click.IntRange(min=4), default=1152, show_default=True, help="Evaluation images.")
@click.option("--batch", type=click.IntRange(min=4), default=128, show_default=True, help="Images per CKA batch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images are drawn.")
@options.device
@click.option("--released", is_flag=True, help="As released with arXiv 2205.14443: units, epsilon, last norm, images.")
@click.option("--true-nyquist", is_flag=True, help="Fourier curves up to the highest frequency.")
@options.stage_plan
@options.analysis_out
def analyze(
    models: tuple[Path, ...], released: bool, true_nyquist: bool, plan: Path | None, out: Path, **drawn: Any
) -> None:
    """Compare the layers of one or two MODELS and draw their attention.

    A model is a finished run of any paper, an exported folder, a weights file, also one of `vitutor convert`, or a
    timm name with weights, such as vit_base_patch16_224.mae.

    Writes cka.svg, fourier.svg, attention-<model>.svg and analysis.json into OUT. With two models, the second is the
    reference. Images are drawn at random from the evaluation split.
    """
    if left_out(plan, "not analysed", out):
        return
    from vitutor_core.analysis.analyse import Quirks
    from vitutor_core.jobs.analyse import analyse_models

    quirks = Quirks(released=released, true_nyquist=true_nyquist)
    for path in analyse_models(models, out, quirks=quirks, **drawn):
        click.echo(str(path))
