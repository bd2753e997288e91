"""vitutor agreement: on which images trained models agree, and what each of them says of a few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.graph.planned import left_out


@click.command("agreement")
@click.argument("models", nargs=-1, required=True, type=options.PathOption())
@click.option("--beside", multiple=True, type=options.PathOption(), help="A model that is shown as well.")
@click.option("--image", "named", multiple=True, help="Show these files, folders or patterns, instead of a choice.")
@click.option("--source", help="Data source of the images, as data.source.  [default: that of the first run]")
@click.option("--images", type=click.IntRange(min=1), default=2000, show_default=True, help="Evaluation images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images are drawn.")
@click.option("--each", type=click.IntRange(1, 10), default=1, show_default=True, help="Images shown of each kind.")
@click.option("--top", type=click.IntRange(1, 10), default=4, show_default=True, help="Classes shown of an image.")
@options.device
@options.stage_plan
@options.analysis_out
def agreement(models: tuple[Path, ...], plan: Path | None, out: Path, **shown: Any) -> None:
    """Find the images on which MODELS agree or complement each other, and draw what they say of a few.

    A model is a finished run, of a student or a teacher, an exported folder or a weights file. Shown are images of
    which all MODELS name the class, and images of which one alone does, model by model: the first ones in a random
    order of the evaluation split. Those given by --beside do not count in this choice.

    Writes agreement.svg and analysis.json into OUT.
    """
    if left_out(plan, "not compared", out):
        return
    from vitutor_core.jobs.agreement import agreement_of

    for path in agreement_of(models, out, **shown):
        click.echo(str(path))
