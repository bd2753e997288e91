"""The commands of a paper package: train, evaluate, predict, robustness, export, config, rows, reproduce.

A package makes its whole command line with `paper_group`; config and method are named, not imported, so that
``--help`` and config mistakes are answered at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.cli.config import config_command
from vitutor_core.cli.predict import predict_command
from vitutor_core.errors import ConfigError
from vitutor_core.graph.planned import PlannedRow
from vitutor_core.jobs.reproduce import Folders, Row, reproduce_planned, reproduce_row
from vitutor_core.jobs.train import Asked, train_row
from vitutor_core.paper import Paper, load
from vitutor_core.recipe import SHIFTED_SETS, read_recipe, recipe_path
from vitutor_core.train.progress import is_silent


def paper_group(paper: Paper, summary: str) -> click.Group:
    """Build the command line of a paper."""

    @click.group(name=paper.command, help=summary, context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(package_name=f"vitutor-{paper.command}")
    def group() -> None:
        pass

    for command in (_train, _reproduce, config_command, _rows, _evaluate, predict_command, _robustness, _export):
        group.add_command(command(paper))
    return group


def _train(paper: Paper) -> click.Command:
    @click.command("train")
    @options.asked(paper)
    @options.teachers
    @options.out
    def train(asked: Asked, teachers: Path | None, out: Path) -> None:
        """Train one run into OUT; the same command again resumes it."""
        record = train_row(asked, out, teachers or out / "teachers")
        if not is_silent():
            click.echo(f"{_measured(record.metrics)} on {record.metrics['images']:.0f} images; {out}")

    return train


def _measured(metrics: dict[str, float]) -> str:
    """Say what was measured: the accuracy, or of a model that is not a classifier yet its own figures."""
    if "top1" in metrics:
        return f"top-1 {metrics['top1']:.2f} %"
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items() if name != "images")


def _reproduce(paper: Paper) -> click.Command:
    @click.command("reproduce")
    @click.argument("row", shell_complete=options.complete(paper, "rows"))
    @options.any_scale
    @options.source
    @options.seeds
    @options.preset_of(paper)
    @options.settings
    @options.plan
    @options.results
    @options.work
    @options.jobs("Seeds trained at once")
    @click.option("--processes", type=click.IntRange(min=1), help="GPUs (or processes on a CPU) per run.  [default: 1]")
    def reproduce(
        row: str,
        scale: str,
        source: str | None,
        seeds: str,
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
        if plan is None:
            numbers = options.seed_numbers(seeds)
            chosen = Row(paper, row, scale, preset, options.with_source(settings, source))
            reproduce_row(chosen, numbers, folders, jobs=jobs, processes=processes or 1)
        else:
            reproduce_planned(paper, row, plan, folders, jobs=jobs, processes=processes)

    return reproduce


def _rows(paper: Paper) -> click.Command:
    @click.command("rows")
    @options.any_scale
    @options.recipe
    def rows(scale: str, recipe: Path | None) -> None:
        """List the rows and presets that a recipe has, with what each changes."""
        found = read_recipe(recipe_path(paper.package, scale, recipe))
        for name, changes in found.rows.items():
            click.echo(f"{name:28}{options.brief(changes)}")
        for name, changes in found.presets.items():
            click.echo(f"{'--preset ' + name:28}{options.brief(changes)}")

    return rows


def _evaluate(paper: Paper) -> click.Command:
    @click.command("evaluate")
    @click.argument("run", metavar="RUN|FILE", type=options.PathOption(exists=True))
    @click.option("--source", help="Evaluate on these images, as data.source, classes matched by name.")
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
    def evaluate(
        run: Path,
        source: str | None,
        split: str | None,
        ema: bool,
        speed: bool,
        plan: Path | None,
        out: Path | None,
        results: Path,
    ) -> None:
        """Evaluate the finished RUN again, from its weights: accuracy, also by class, calibration, parameters, FLOPs.

        With --source, --split or --ema only the accuracy is measured. --out writes evaluation.json, classes.csv,
        confusion.csv and confusion.svg. RUN may also be what `reproduce` published of a row, a folder with a run per
        seed; --out then writes a record of each seed for the tables. Of a weights FILE, such as `vitutor convert`
        writes, the accuracy on --source is measured.
        """
        if plan is None and not any(run.glob("seed-*")):
            from vitutor_core.jobs.by_class import evaluate_by_class

            found = evaluate_by_class(paper, run, out, source=source, split=split, ema=ema, speed=speed)
            click.echo(json.dumps(found, indent=2))
            return
        if source is not None or split is not None or ema:
            raise ConfigError(f"{run}: holds several runs; --source, --split and --ema are for one of them")
        from vitutor_core.jobs.evaluate import evaluate_row

        if plan is not None:
            out = out or results / "evaluation" / paper.package / run.name
        if out is None:
            raise ConfigError(f"{run}: holds several runs; name one of them, or write all with --out")
        planned = None if plan is None else PlannedRow.read(plan, paper.package, run.name)
        evaluate_row(paper, run, out, planned, speed=speed)

    return evaluate


def _robustness(paper: Paper) -> click.Command:
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
    def robustness(
        run: Path, images: Path | None, sets: list[str] | None, device: str, plan: Path | None, out: Path | None
    ) -> None:
        """Evaluate the finished RUN, a student's or a teacher's, out of distribution.

        With --sets, of a student of this paper: on the folders imagenet-SET of VITUTOR_DATA_ROOT.
        """
        from vitutor_core.jobs.robustness import measure_images, measure_row, measure_student

        if images is not None and (sets or out is not None):
            raise ConfigError("--images: give it without --sets and --out")
        if out is not None:
            measure_row(paper, run, sets or (), out, device, plan)
        elif sets:
            click.echo(json.dumps(measure_student(paper, run, sets, device), indent=2))
        else:
            click.echo(json.dumps(measure_images(paper, run, images, device), indent=2))

    return robustness


def _export(paper: Paper) -> click.Command:
    @click.command("export")
    @click.argument("run", metavar="RUN|FILE", type=options.PathOption(exists=True))
    @click.option("--to", type=options.PathOption(), help="A folder, or a file NAME.safetensors, for timm.")
    @options.file("--onnx", "A file for onnxruntime and others.")
    @options.file("--torch-export", "A file for torch.export.load.")
    @click.option("--push", metavar="OWNER/NAME", help="Upload the folder of --to to the Hub, if new as private.")
    @click.option("--source", help="Compare a program on these images, as data.source.  [default: RUN's evaluation]")
    @options.ema
    def export(run: Path, source: str | None, ema: bool, **targets: Any) -> None:
        """Write the student of RUN, or the model of a weights FILE, for others, with a model card.

        --to a folder, which timm.create_model("local-dir:FOLDER", pretrained=True) and resolve_data_config rebuild; or
        to a file, for timm.create_model(..., checkpoint_path=FILE). --onnx and --torch-export write programs, which
        need none of our code: input "images", normalised, of any batch size. Their logits are compared with the
        model's on real images, to 1e-4.
        """
        from vitutor_core.jobs.export import Targets, export_run

        load(paper.method)  # registers the paper's models with timm
        for line in export_run(run, Targets(**targets), paper.package, ema=ema, source=source):
            click.echo(line)

    return export
