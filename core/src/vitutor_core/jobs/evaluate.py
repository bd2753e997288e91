"""Evaluate the published runs of a row and write their records for the tables. Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vitutor_core.errors import CheckpointError
from vitutor_core.files import copy_file, replace_folder
from vitutor_core.graph.planned import PlannedRow, leave_out, take_up
from vitutor_core.paper import Paper, load
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.terminal import say

if TYPE_CHECKING:
    from vitutor_core.evaluate.accuracy import Measured

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
