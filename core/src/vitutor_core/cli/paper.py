"""The commands of a paper package: train, reproduce, config, rows, evaluate, predict, robustness, export.

A package gets its whole command line by `paper_group`; config and method are named, not imported, so that ``--help``
and config mistakes are answered at once.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.cli.models import predict
from vitutor_core.errors import goes_on
from vitutor_core.explain import commented, explained
from vitutor_core.files import write_text
from vitutor_core.jobs.evaluate import evaluate_published
from vitutor_core.jobs.reproduce import Folders, Row, reproduce_planned, reproduce_row
from vitutor_core.jobs.robustness import measure
from vitutor_core.jobs.train import Asked, train_row
from vitutor_core.paper import Paper, load
from vitutor_core.progress import is_silent
from vitutor_core.recipe import SHIFTED_SETS, default_scale, read_recipe, recipe_path
from vitutor_core.terminal import printable


def paper_group(paper: Paper) -> click.Group:
    """Build the command line of a paper."""
    settings = {"help_option_names": ["-h", "--help"], "obj": paper}

    @click.group(name=paper.command, help=paper.summary, context_settings=settings)
    @click.version_option(package_name=f"vitutor-{paper.command}")
    def group() -> None:
        pass

    own = [load(reference) for reference in paper.commands]
    for command in (train, reproduce, config, rows, evaluate, predict, robustness, export, *own):
        group.add_command(command)
    return group


@click.command("train")
@options.asked
@options.teachers
@options.out
@goes_on()
def train(asked: Asked, teachers: Path | None, out: Path) -> None:
    """Train one run into OUT; the same command again resumes it."""
    record = train_row(asked, out, teachers or out / "teachers")
    if not is_silent():
        click.echo(f"{_measured(record.metrics)} on {record.metrics['images']:.0f} images; {out}")


def _measured(metrics: dict[str, float]) -> str:
    """Say what was measured: the accuracy, or of a model that is not a classifier yet its own figures."""
    if "top1" in metrics:
        return f"top-1 {metrics['top1']:.2f} %"
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "images")


@click.command("reproduce")
@options.row_argument
@options.any_scale
@options.source
@options.seeds
@options.preset
@options.settings
@options.plan
@options.results
@options.work
@options.jobs("Seeds trained at once")
@options.number("--processes", "GPUs (or processes on a CPU) per run.  [default: 1]")
@click.pass_obj
@goes_on()
def reproduce(
    paper: Paper,
    row: str,
    scale: str,
    source: str | None,
    seeds: tuple[int, ...],
    preset: str | None,
    settings: tuple[str, ...],
    plan: Path | None,
    results: Path,
    work: Path,
    jobs: int | None,
    processes: int | None,
) -> None:
    """Train ROW of the paper's tables with several seeds and publish each into RESULTS/runs/PAPER/ROW.

    Checkpoints live in WORK, in a folder named by what decides the result, so an interrupted command resumes and
    a changed hyper-parameter starts afresh. Seeds that are published already are left alone.
    """
    folders = Folders(results, work)
    if plan is not None:
        reproduce_planned(paper, row, plan, folders, jobs=jobs, processes=processes)
        return
    chosen = Row(paper, row, scale, preset, options.with_shorts(settings, source=source))
    reproduce_row(chosen, seeds, folders, jobs=jobs, processes=processes or 1)


@click.command("config")
@options.asked
@click.option(
    "--explain",
    metavar="[FIELD]",
    is_flag=False,
    flag_value="",
    help="Print every field, or those below FIELD: text, type, bounds, default, and where the value comes from.",
)
@options.file("--out", "Write a recipe with the fields' texts, for --recipe.")
def config(asked: Asked, explain: str | None, out: Path | None) -> None:
    """Print the resolved config as JSON, and its fingerprint."""
    resolved = asked.config()
    if out is not None:
        scale = () if asked.scale == default_scale(out) else ("--scale", asked.scale)
        command = shlex.join([asked.paper.command, "train", *scale, "--recipe", str(out), "--out", "RUN"])
        write_text(out, commented(resolved, command))
        click.echo(f"written {out}; {command}")
    if explain is not None:
        path = recipe_path(asked.paper.package, asked.scale, asked.recipe)
        lines = explained(resolved, path, preset=asked.preset, row=asked.row, settings=asked.settings, below=explain)
        for line in lines:
            click.echo(printable(line))
    elif out is None:
        click.echo(resolved.model_dump_json(indent=2))
        click.echo(f"fingerprint {resolved.fingerprint()}", err=True)


@click.command("rows")
@options.any_scale
@options.recipe
@click.pass_obj
def rows(paper: Paper, scale: str, recipe: Path | None) -> None:
    """List the rows and presets that a recipe has, with what each changes."""
    path = recipe_path(paper.package, scale, recipe)
    found = read_recipe(path)
    if not found.rows and not found.presets:
        click.echo(f"{path}: no rows and no presets; train its base, without --row", err=True)
    presets = {f"--preset {name}": changes for name, changes in found.presets.items()}
    for name, changes in (found.rows | presets).items():
        click.echo(f"{name:28}{options.brief(changes)}")


@click.command("evaluate")
@click.argument("run", metavar="RUN|FILE", type=options.PathOption(exists=True))
@click.option(
    "--source",
    help="Evaluate on these images, as data.source, classes matched by name; RUN's own are those evaluated without it.",
)
@click.option("--split", help="Evaluate on this split, e.g. train or test.")
@options.ema
@click.option("--speed", is_flag=True, help="Measure throughput as well.")
@options.plan
@options.folder(
    "--out",
    "Write the confusion matrix there; of a row, the records of its runs.  "
    "[default under a plan: RESULTS/evaluation/PAPER/ROW]",
)
@options.results
@click.pass_obj
def evaluate(paper: Paper, /, run: Path, **how: Any) -> None:
    """Evaluate the finished RUN again, from its weights: accuracy, also by class, calibration, parameters, FLOPs.

    With --source, --split or --ema only the accuracy is measured. --out writes evaluation.json, classes.csv,
    confusion.csv and confusion.svg. RUN may also be what `reproduce` published of a row, a folder with a run per
    seed; --out then writes a record of each seed for the tables. Of a weights FILE, such as `vitutor convert`
    writes, or an exported folder, the accuracy on --source is measured.
    """
    evaluate_published(paper, run, **how)


@click.command("robustness")
@click.argument("run", type=options.PathOption(exists=True, file_okay=False))
@options.folder(
    "--images",
    "A folder per class, some or all of the model's.  [default: RUN's own images, corrupted]",
    exists=True,
)
@options.names("--sets", f"Sets of ImageNet below VITUTOR_DATA_ROOT, of {', '.join(SHIFTED_SETS)}; by commas.")
@options.device
@options.stage_plan
@options.folder("--out", "RUN is what `reproduce` published of a row: write the figures of each of its runs there.")
@click.pass_obj
def robustness(paper: Paper, /, run: Path, **how: Any) -> None:
    """Evaluate the finished RUN, a student's or a teacher's, out of distribution.

    With --sets, of a student of this paper: on the folders imagenet-SET of VITUTOR_DATA_ROOT.
    """
    measure(paper, run, **how)


@click.command("export")
@click.argument("run", metavar="RUN|FILE", type=options.PathOption(exists=True))
@click.option("--to", type=options.PathOption(), help="A folder, or a file NAME.safetensors, for timm.")
@options.file("--onnx", "A file for onnxruntime and others.")
@options.file("--torch-export", "A file for torch.export.load.")
@click.option("--push", metavar="OWNER/NAME", help="Upload the folder of --to to the Hub, if new as private.")
@click.option("--source", help="Compare a program on these images, as data.source.  [default: RUN's evaluation]")
@options.ema
@click.pass_obj
def export(paper: Paper, /, run: Path, source: str | None, ema: bool, **targets: Any) -> None:
    """Write the student of RUN, or the model of a weights FILE or an exported folder, for others, with a model card.

    --to a folder, which timm.create_model("local-dir:FOLDER", pretrained=True) and resolve_data_config rebuild; or
    to a file, for timm.create_model(..., checkpoint_path=FILE). --onnx and --torch-export write programs, which
    need none of our code: input "images", normalised, of any batch size. Their logits are compared with the
    model's on real images, to 1e-4.
    """
    from vitutor_core.jobs.export import Targets, export_run

    load(paper.method)  # registers the paper's models with timm
    for line in export_run(run, Targets(**targets), paper.package, ema=ema, source=source):
        click.echo(line)
