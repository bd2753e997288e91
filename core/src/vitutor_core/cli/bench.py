"""Measure on this machine what a training step, a method, a teacher and a loader cost."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitutor_core.cli import options
from vitutor_core.compare.contest import Contest
from vitutor_core.config import setting
from vitutor_core.files import write_json
from vitutor_core.graph.needs import teachers_of
from vitutor_core.jobs.launch import Job, run_jobs
from vitutor_core.jobs.reproduce import Row
from vitutor_core.jobs.teacher import teacher_config
from vitutor_core.paper import installed_papers, load
from vitutor_core.recipe import scales_of
from vitutor_core.schema import RunConfig

if TYPE_CHECKING:
    from vitutor_core.bench.methods import Subject

_ONE_STEP = ("train.accumulate=1", "train.compile=false", "cache.folder=null")
PARTS = (
    *("limits", "plain step", "waiting for data", "resident loader", "streamed loader", "methods", "teachers"),
    *("host and kernels", "several GPUs"),
)
"""Those of `vitutor_core.bench.suite`, which is too heavy to import for ``--help``; the last two are for GPUs."""


@click.command("bench")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    help="About how long; more gives narrower spreads.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--scale",
    type=click.Choice(options.SCALES),
    help="Sizes of models and images.  [default: small; on a GPU cifar100]",
)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of torch.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="Measure this part alone; repeatable.")
@click.option(
    "--out",
    type=options.PathOption(file_okay=False),
    default=Path("bench"),
    show_default=True,
    help="Folder for bench.json and bench.svg.",
)
def bench(minutes: float, device: str, scale: str | None, threads: int, only: tuple[str, ...], out: Path) -> None:
    """Measure this machine: our steps and loaders beside timm's, methods beside their plain students, teachers.

    Everything is a ratio of times that were taken in turn; what claims to compute the same is checked. Noise stands for
    images and teachers are untrained, so nothing has to be there.
    """
    import torch

    from vitutor_core.bench import result, show, suite
    from vitutor_core.distributed import Processes, choose_device

    torch.set_num_threads(threads)
    place = choose_device(device)
    scale = scale or ("cifar100" if place.type == "cuda" else "small")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with tempfile.TemporaryDirectory() as folder:
        found = suite.run(
            scale,
            _subjects(scale, Path(folder), bf16=place.type == "cuda"),
            Processes(0, 1, place),
            minutes=minutes,
            launch=on_processes,
            only=only,
            begin=lambda part, seconds: click.echo(f"{part}: {seconds:.0f} s", err=True),
        )
    peak_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    facts = {"minutes": minutes, "device": str(place), "scale": scale, "threads": threads, "peak_mib": peak_mib}
    record = result.record(found, **facts)
    write_json(out / "bench.json", record)
    show.show(found)
    name = record["machine"]["gpu"] if place.type == "cuda" else record["machine"]["processor"]
    show.draw(found, out / "bench", caption=f"{name}, scale {scale}")
    click.echo(f"{name}, {threads} threads, scale {scale}, {peak_mib} MiB of memory at the peak; {out}")


def on_processes(count: int, target: str, arguments: dict[str, Any]) -> None:
    """Call ``target`` in ``count`` processes that work together."""
    run_jobs([Job("bench", target, arguments)], 1, preload=(), tick=lambda: None, processes=count)


def _subjects(scale: str, folder: Path, *, bf16: bool) -> list[Subject]:
    """Return each paper's lines of `vitutor compare` and the rows before them, with untrained teachers."""
    from vitutor_core.bench.methods import Subject

    precision = setting("train.precision", "bf16" if bf16 else "fp32")
    papers = {name: paper for name, paper in installed_papers().items() if scale in scales_of(name)}
    contest = Contest(scale, papers, (*_ONE_STEP, precision))
    # A step is no slower without the weights that it starts from.
    alone = ["student.start_row=null", setting("train.batch_size", contest.budget.train.batch_size)]
    lines = [entry.row for entry in contest.entries() if entry.row.paper.package in papers]
    subjects = []
    for row in dict.fromkeys(row for line in lines for row in (*(before for before, _ in contest.before(line)), line)):
        config = _with_untrained_teachers(row, contest, folder).changed(alone)
        build = load(row.paper.method).build
        subjects.append(Subject(f"{row.paper.package}, {row.name}", build, config, contest.budget))
    return subjects


def _with_untrained_teachers(row: Row, contest: Contest, folder: Path) -> RunConfig:
    """Fill in teachers of the recipe's architectures with random weights, which take the same time."""
    import torch

    from vitutor_core.bench.synthetic import synthetic_info
    from vitutor_core.jobs.preflight import save_untrained

    config, others = row.config(0), contest.teacher_rows(row)
    found = []
    for path, teacher in teachers_of(config):
        if teacher.weights is not None or (teacher.recipe is None and teacher.row is None):
            continue
        own = (
            teacher_config(config, row.scale, teacher.recipe)
            if teacher.recipe is not None
            else others[str(teacher.row)].config(0)
        )
        file = folder / f"{row.paper.package}-{teacher.recipe or teacher.row}.safetensors"
        torch.manual_seed(0)
        save_untrained(file, own, synthetic_info(config))
        found.append(setting(f"{path}.weights", str(file)))
    return config.changed(found)
