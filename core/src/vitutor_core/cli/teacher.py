"""vitutor teacher: train a teacher of a recipe. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.graph.planned import left_out, read_planned
from vitutor_core.jobs.sizes import show_sizes
from vitutor_core.jobs.teacher import train_teacher
from vitutor_core.paper import teacher_recipe
from vitutor_core.recipe import OWN, resolve
from vitutor_core.schema import RunConfig


@click.command("teacher")
@click.argument("name")
@options.any_scale
@options.source
@options.recipe
@options.settings
@options.folder("--work", "Train there, in a folder named by the fingerprint.  [default: OUT; work under a plan]")
@options.stage_plan
@options.out
def teacher(
    name: str,
    scale: str,
    source: str | None,
    recipe: Path | None,
    settings: tuple[str, ...],
    work: Path | None,
    plan: Path | None,
    out: Path,
) -> None:
    """Train the teacher NAME of a recipe into OUT."""
    if left_out(plan, f"{name}: not trained", out):
        return
    if plan is not None:
        scale, work = read_planned(plan)["scale"], work or Path("work")
    settings = options.with_source(settings, source)
    if scale == OWN:
        show_sizes(resolve(RunConfig, recipe or teacher_recipe(scale, name), row=name, settings=settings))
    result = train_teacher(scale, name, out, recipe=recipe, settings=settings, work=work)
    click.echo(f"{name}: top-1 {result:.2f} %; {out}")
