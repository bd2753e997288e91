"""Evaluate the published runs of a row and write their records for the tables."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import click

from vitutor_core.errors import CheckpointError
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.evaluate.confusion import by_class
from vitutor_core.graph.planned import PlannedRow, leave_out
from vitutor_core.models.weights import read_card
from vitutor_core.paper import Paper, load
from vitutor_core.report.confusion import write_by_class
from vitutor_core.train.evaluation import evaluate_elsewhere, evaluate_run, read_record, weights_file
from vitutor_core.train.run_folder import write_json


def evaluate_one(paper: Paper, run: Path, *, speed: bool) -> Measured:
    """Measure one finished run."""
    method = load(paper.method)  # registers the paper's models with timm
    return evaluate_run(run, read_record(run, paper.package), load(paper.config), method.build, speed=speed)


def evaluate_by_class(
    paper: Paper, run: Path, out: Path | None, *, source: str | None, split: str | None, ema: bool, speed: bool
) -> dict[str, Any]:
    """Measure one finished run also class by class, and write that into ``out`` if given; return what to show.

    Without a choice of images or weights these are all figures of the run, else its accuracy.
    """
    load(paper.method)  # registers the paper's models with timm
    if source is None and split is None and not ema:
        measured = evaluate_one(paper, run, speed=speed)
    else:
        record = read_record(run, paper.package)
        measured = evaluate_elsewhere(run, record, load(paper.config), source=source, split=split, ema=ema)
    card = read_card(weights_file(run, ema=ema))
    if measured.answers is None or card is None:
        return dict(measured.metrics)
    found = by_class(measured.answers, card.class_names)
    if out is not None:
        chosen = {"run": str(run), "source": source, "split": split, "ema": ema}
        for path in write_by_class({**chosen, "metrics": measured.metrics, **found}, out):
            click.echo(str(path), err=True)
    of_classes = {line["class"]: line["top1"] for line in found["classes"]}
    return {**measured.metrics, "balanced_top1": found["balanced_top1"], "class_top1": of_classes}


def evaluate_row(paper: Paper, runs: Path, out: Path, planned: PlannedRow | None, *, speed: bool) -> None:
    """Evaluate the runs ``seed-N`` below ``runs``, or those of the planned seeds, into ``out/seed-N/metrics.json``.

    A record is that of the training with the metrics measured now. Raises `CheckpointError` where a run is missing.
    """
    if planned is not None:
        folders = [runs / f"seed-{seed}" for seed in planned.seeds] if planned.run else []
    else:
        folders = sorted(runs.glob("seed-*"))
        if not folders:
            raise CheckpointError(f"{runs.absolute()}: no finished run; train one with '{paper.command} reproduce'")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for folder in folders:
        record = read_record(folder, paper.package)
        found, correct, _ = evaluate_one(paper, folder, speed=speed)
        metrics = record["metrics"] | found
        target = out / folder.name
        target.mkdir()
        shutil.copyfile(folder / "curves.csv", target / "curves.csv")
        write_json(target / "metrics.json", record | {"metrics": metrics, "correct": correct})
        shown = f"top-1 {metrics['top1']:.2f} %" if "top1" in metrics else f"{len(metrics)} metrics"
        click.echo(f"{runs.name}, {folder.name}: {shown}")
    if planned is not None and not planned.run:
        leave_out(out, planned.why)
        click.echo(f"{runs.name}: not evaluated, {planned.why}")
