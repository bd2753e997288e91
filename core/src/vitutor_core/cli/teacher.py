"""Train teachers from the recipes of core and of the papers: one row per teacher, at each scale."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TypeVar

import click

from vitutor_core.cli import options
from vitutor_core.cli.stage import left_out
from vitutor_core.config import setting
from vitutor_core.graph.needs import teachers_of
from vitutor_core.graph.planned import read_planned
from vitutor_core.paper import teacher_recipe
from vitutor_core.recipe import resolve
from vitutor_core.schema import RunConfig
from vitutor_core.train.publish import publish

RunConfigT = TypeVar("RunConfigT", bound=RunConfig)


@click.command("teacher")
@click.argument("name")
@options.scale
@options.recipe
@options.settings
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Train there, in a folder named by the fingerprint.  [default: OUT; work under a plan]",
)
@options.stage_plan
@options.out()
def teacher(
    name: str,
    scale: str,
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
    result = train_teacher(scale, name, out, recipe=recipe, settings=settings, work=work)
    click.echo(f"{name}: top-1 {result:.2f} %; {out}")


def train_teacher(
    scale: str,
    name: str,
    out: Path,
    *,
    recipe: Path | None = None,
    settings: tuple[str, ...] = (),
    work: Path | None = None,
) -> float:
    """Train one teacher with plain supervision and return its top-1 accuracy in percent."""
    config = resolve(RunConfig, recipe or teacher_recipe(scale, name), row=name, settings=settings)
    from vitutor_core.train.session import RunLabel, train
    from vitutor_core.train.supervised import Supervised

    run = out
    if work is not None:
        key = config.fingerprint()[:12]
        run = work / "teachers" / scale / f"{name}-{key}"
    label = RunLabel("supervised", name, scale, options.command_line("vitutor"))
    result = train(config, Supervised.build, label=label, out=run)
    if work is not None:
        publish(run, out)
        shutil.rmtree(run)
    return float(result["metrics"]["top1"])


def with_teachers(config: RunConfigT, scale: str, folder: Path, *, settings: tuple[str, ...] = ()) -> RunConfigT:
    """Train, unless they are there, the teachers that a config names by recipe, and fill in where they are.

    A teacher sees the same source as the student, whole but for what is held out; ``settings`` change its recipe
    further.
    """
    found = []
    same = {
        "data": ("source", "image_column", "label_column", "image_size", "eval_split", "holdout", "holdout_seed"),
        "runtime": ("device", "threads", "workers"),
    }
    inherited = tuple(
        setting(f"{section}.{name}", getattr(getattr(config, section), name))
        for section, names in same.items()
        for name in names
    )
    for path, teacher in teachers_of(config):
        if teacher.recipe is not None and teacher.weights is None:
            run = trained_teacher(scale, teacher.recipe, folder, settings=(*inherited, *settings))
            found.append(setting(f"{path}.weights", str(run)))
    return config.changed(found)


def trained_teacher(scale: str, name: str, folder: Path, *, settings: tuple[str, ...] = ()) -> Path:
    """Return the run of a teacher recipe below ``folder``, trained first unless it is there."""
    run = (folder / name).absolute()
    if not (run / "metrics.json").exists():
        train_teacher(scale, name, run, settings=settings)
    return run
