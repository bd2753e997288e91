"""Evaluate finished runs: one of them, also class by class, or those of a row. Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.files import copy_file, replace_folder
from vitutor_core.graph.planned import PlannedRow, leave_out, take_up
from vitutor_core.jobs.models import file_of_export, run_weights
from vitutor_core.paper import Paper, load
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.terminal import say, say_json

if TYPE_CHECKING:
    from vitutor_core.evaluate.accuracy import Measured

_OWN = ("seed-*/metrics.json", "seed-*/curves.csv")


def evaluate_published(
    paper: Paper,
    run: Path,
    *,
    plan: Path | None,
    out: Path | None,
    results: Path,
    source: str | None,
    split: str | None,
    ema: bool,
    speed: bool,
) -> None:
    """Evaluate one run and print its figures, or all runs of a row as a ``plan`` says, or into ``out``."""
    if plan is None and not any(run.glob("seed-*")):
        found = evaluate_by_class(paper, run, out, source=source, split=split, ema=ema, speed=speed)
        say_json(found)
        return
    if source is not None or split is not None or ema:
        raise ConfigError(f"{run}: holds several runs; --source, --split and --ema are for one of them")
    planned = None if plan is None else PlannedRow.read(plan, paper.package, run.name)
    if planned is not None:
        out = out or results / "evaluation" / paper.package / run.name
    if out is None:
        raise ConfigError(f"{run}: holds several runs; name one of them, or write all with --out")
    evaluate_row(paper, run, out, planned, speed=speed)


def evaluate_by_class(
    paper: Paper, run: Path, out: Path | None, *, source: str | None, split: str | None, ema: bool, speed: bool
) -> dict[str, Any]:
    """Measure one finished run also class by class, and write that into ``out`` if given; return what to show.

    Without a choice of images or weights these are all figures of the run, else its accuracy. ``run`` may be a weights
    file, with the ``source`` of its images.
    """
    from vitutor_core.evaluate.labelled import evaluate_elsewhere, evaluate_file

    load(paper.method)  # registers the paper's models with timm
    weights = file_of_export(run)
    if weights.is_file():
        if source is None or ema:
            raise ConfigError(f"{run}: weights alone, not a run; give --source, the images, and leave --ema out")
        measured = evaluate_file(weights, source=source, split=split)
    else:
        record = RunRecord.read(run, paper.package)
        weights = run_weights(run, ema=ema)
        if source is None and split is None and not ema:
            measured = evaluate_one(paper, run, speed=speed)
        else:
            config = load(paper.config).from_mapping(record.config, where=str(run / "metrics.json"))
            measured = evaluate_elsewhere(weights, config, source=source, split=split)
    chosen = {"run": str(run), "source": source, "split": split, "ema": ema}
    return _by_class(weights, measured, chosen, out)


def _by_class(weights: Path, measured: Measured, chosen: dict[str, Any], out: Path | None) -> dict[str, Any]:
    from vitutor_core.evaluate.confusion import by_class
    from vitutor_core.models.weights import read_card
    from vitutor_core.report.confusion import write_by_class

    card = read_card(weights)
    if measured.answers is None or card is None:
        return dict(measured.metrics)
    found = by_class(measured.answers, card.class_names)
    if out is not None:
        for path in write_by_class({**chosen, "metrics": measured.metrics, **found}, out):
            say(str(path), err=True)
    of_classes = {line["class"]: line["top1"] for line in found["classes"]}
    return {**measured.metrics, "balanced_top1": found["balanced_top1"], "class_top1": of_classes}


def evaluate_one(paper: Paper, run: Path, *, speed: bool) -> Measured:
    """Measure one finished run."""
    from vitutor_core.train.evaluation import evaluate_run

    method = load(paper.method)  # registers the paper's models with timm
    record = RunRecord.read(run, paper.package)
    return evaluate_run(run, record, load(paper.config), method.build, speed=speed)


def evaluate_row(
    paper: Paper,
    runs: Path,
    out: Path,
    planned: PlannedRow | None,
    *,
    speed: bool,
    seeds: Sequence[int] | None = None,
) -> None:
    """Evaluate the runs ``seed-N`` below ``runs``, or those of the planned seeds, into ``out/seed-N/metrics.json``.

    Without a plan, ``seeds`` chooses some; what ``out`` has of others is removed.

    A record is that of the training with the metrics measured now. Raises `CheckpointError` where a run is missing.
    """
    if planned is not None:
        seeds = planned.seeds if planned.run else ()
    folders = sorted(runs.glob("seed-*")) if seeds is None else [runs / f"seed-{seed}" for seed in seeds]
    if seeds is None and not folders:
        raise CheckpointError(f"{runs.absolute()}: no finished run; train one with '{paper.command} reproduce'")
    take_up(out)
    with replace_folder(out, *_OWN) as partial:
        records = [RunRecord.read(folder, paper.package) for folder in folders]
        for folder, record in zip(folders, records, strict=True):
            found, correct, _ = evaluate_one(paper, folder, speed=speed)
            metrics = record.metrics | found
            target = partial / folder.name
            copy_file(RunDir(folder).curves, RunDir(target).curves)
            record.model_copy(update={"metrics": metrics, "correct": correct}).write(target)
            shown = f"top-1 {metrics['top1']:.2f} %" if "top1" in metrics else f"{len(metrics)} metrics"
            say(f"{runs.name}, {folder.name}: {shown}")
    if planned is not None and not planned.run:
        leave_out(out, planned.why)
        say(f"{runs.name}: not evaluated, {planned.why}")
