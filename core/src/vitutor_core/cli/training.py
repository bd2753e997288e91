"""Training beside the papers' own: teacher, cache, compare, detect. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.compare.papers import compare_papers
from vitutor_core.config import setting
from vitutor_core.errors import goes_on
from vitutor_core.graph.planned import left_out, read_planned
from vitutor_core.jobs.sizes import show_sizes
from vitutor_core.jobs.teacher import resolved, train_teacher, with_teachers
from vitutor_core.jobs.train import Asked
from vitutor_core.paper import load
from vitutor_core.recipe import OWN
from vitutor_core.terminal import command_line


@click.command("teacher")
@click.argument("name")
@options.any_scale
@options.source
@options.recipe
@options.settings
@options.folder("--work", "Train there, in a folder named by the fingerprint.  [default: OUT; work under a plan]")
@options.stage_plan
@options.out
@goes_on()
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
    settings = options.with_shorts(settings, source=source)
    if scale == OWN:
        show_sizes(resolved(scale, name, settings, recipe))
    result = train_teacher(scale, name, out, recipe=recipe, settings=settings, work=work)
    click.echo(f"{name}: top-1 {result:.2f} %; {out}")


@click.command("cache")
@click.argument("paper")
@options.asked
@options.own_teachers
@goes_on()
def cache(asked: Asked, teachers: Path) -> None:
    """Store in cache.folder what the teachers say of the batches of a run of PAPER.

    Runs with the same images, augmentation, batch size and seed of the views then need no teacher for its logits; so
    do those of other rows and, with data.view_seed set, of other seeds. Interrupted, the command goes on after the
    last whole epoch.
    """
    config, method = asked.config(), asked.paper.method
    if config.cache.folder is None:
        config = config.changed(["cache.folder=cache"])
    from vitutor_core.train.ahead import store_logits

    config = with_teachers(config, asked.scale, teachers, method=method)

    def starting(epochs: int, gigabytes: float) -> None:
        click.echo(f"{epochs} epochs, at most {gigabytes:.3g} GB in {config.cache.folder}")

    def epoch_done(epoch: int) -> None:
        click.echo(f"epoch {epoch + 1}/{config.train.epochs}", err=True)

    facts = store_logits(config, load(method).build, starting=starting, epoch_done=epoch_done)
    kept = facts["epochs_written"] + facts["epochs_read"]
    click.echo(f"{kept} epochs stored ({facts['epochs_read']} were there), {facts['epochs_computed']} beyond max_gb")


@click.command("compare")
@options.any_scale
@options.source
@click.option("--student", metavar="NAME", help="Short for --set student.name=NAME, any vision transformer of timm's.")
@options.names("--papers", "Package names, separated by commas.  [default: all that are installed]")
@options.names("--methods", "Names of lines, separated by commas, as --estimate lists them.  [default: all]")
@options.names("--compose", "Compositions too: lines joined by +, as A+B, separated by commas; or all.")
@options.seeds
@options.settings
@click.option("--estimate", is_flag=True, help="Check every line, say what it costs, and train nothing.")
@options.folder("--publish", "Keep table, figures and records there, too.")
@options.folder("--out", "Folder of the comparison; the same command again goes on.", required=True)
@goes_on()
def compare(out: Path, source: str | None, student: str | None, settings: tuple[str, ...], **which: Any) -> None:
    """Train one common student by every installed method that can, and show what each adds and what it costs.

    Images, augmentation, optimiser and number of updates are the same for all; --set changes them for all, e.g.
    --source folder:my_images --set data.fraction=0.1. What a method needs besides (teachers, pre-training) comes from
    its own recipe and is counted. Beside them: the student alone, that for as much compute as the costliest method
    takes, the CNN alone, and plain distillation. Interrupted, the same command goes on; changed, it trains what
    changed.
    """
    from vitutor_core.report.leaderboard_text import print_board

    settings = options.with_shorts(settings, source=source)
    settings = (setting("student.name", student), *settings) if student is not None else settings
    board = compare_papers(out, settings=settings, command=command_line("vitutor"), **which)
    if not which["estimate"]:
        print_board(board)
        click.echo(f"report {out / 'compare.html'}")


@click.command("detect")
@click.argument("model")
@click.option(
    "--source", default="scenes", show_default=True, help="Scenes of digits, or coco:FOLDER in COCO's layout."
)
@options.settings
@options.seed
@options.out
@goes_on()
def detect(model: str, source: str, settings: tuple[str, ...], seed: int | None, out: Path) -> None:
    """Train Mask R-CNN on MODEL and measure the average precision of its boxes and masks.

    MODEL is a finished run or a weights file of any paper, whose weights are fine-tuned, or the timm name of a model
    that starts fresh. OUT gets ap.json and detections.svg beside the files of a run.
    """
    from vitutor_core.jobs.detect import train_detector

    train_detector(model, source, options.with_shorts(settings, seed=seed), out, command_line("vitutor"))
