"""Measure finished runs again, from their weights: one of them class by class, or those of a row for the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.evaluate.confusion import by_class
from vitutor_core.evaluate.labelled import evaluate_elsewhere, evaluate_file
from vitutor_core.files import copy_file, replace_folder
from vitutor_core.graph.planned import PlannedRow, leave_out, take_up
from vitutor_core.jobs.models import run_weights
from vitutor_core.models.weights import read_card
from vitutor_core.paper import Paper, load
from vitutor_core.report.confusion import write_by_class
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.terminal import say

_OWN = ("seed-*/metrics.json", "seed-*/curves.csv")


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
        folders = [runs / f"seed-{seed}" for seed in planned.seeds] if planned.run else []
    elif seeds is not None:
        folders = [runs / f"seed-{seed}" for seed in seeds]
    else:
        folders = sorted(runs.glob("seed-*"))
        if not folders:
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


def evaluate_by_class(
    paper: Paper, run: Path, out: Path | None, *, source: str | None, split: str | None, ema: bool, speed: bool
) -> dict[str, Any]:
    """Measure one finished run also class by class, and write that into ``out`` if given; return what to show.

    Without a choice of images or weights these are all figures of the run, else its accuracy. ``run`` may be a weights
    file, with the ``source`` of its images.
    """
    load(paper.method)  # registers the paper's models with timm
    if run.is_file():
        return _shown(run, run, _of_file(run, source, split, ema=ema), out, source=source, split=split, ema=False)
    record = RunRecord.read(run, paper.package)
    weights = run_weights(run, ema=ema)
    if source is None and split is None and not ema:
        measured = evaluate_one(paper, run, speed=speed)
    else:
        config = load(paper.config).from_mapping(record.config, where=str(run / "metrics.json"))
        measured = evaluate_elsewhere(weights, config, source=source, split=split)
    return _shown(run, weights, measured, out, source=source, split=split, ema=ema)


def _of_file(file: Path, source: str | None, split: str | None, *, ema: bool) -> Measured:
    if source is None or ema:
        raise ConfigError(f"{file}: a weights file, not a run; give --source, the images, and leave --ema out")
    return evaluate_file(file, source=source, split=split)


def _shown(run: Path, weights: Path, measured: Measured, out: Path | None, **chosen: Any) -> dict[str, Any]:
    card = read_card(weights)
    if measured.answers is None or card is None:
        return dict(measured.metrics)
    found = by_class(measured.answers, card.class_names)
    if out is not None:
        for path in write_by_class({"run": str(run), **chosen, "metrics": measured.metrics, **found}, out):
            say(str(path), err=True)
    of_classes = {line["class"]: line["top1"] for line in found["classes"]}
    return {**measured.metrics, "balanced_top1": found["balanced_top1"], "class_top1": of_classes}
