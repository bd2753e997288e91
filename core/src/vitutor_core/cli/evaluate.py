"""Evaluate the published runs of a row and write their records for the tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from vitutor_core.errors import CheckpointError
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.graph.planned import PlannedRow, leave_out
from vitutor_core.paper import Paper, load
from vitutor_core.train.evaluation import evaluate_run, read_record
from vitutor_core.train.run_folder import write_json


def evaluate_one(paper: Paper, run: Path, *, speed: bool) -> Measured:
    """Measure one finished run."""
    method = load(paper.method)  # registers the paper's models with timm
    return evaluate_run(run, read_record(run, paper.package), load(paper.config), method.build, speed=speed)


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
