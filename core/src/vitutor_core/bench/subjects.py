"""The rows that are measured: each paper's lines of `vitutor compare`, and what is trained before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitutor_core.bench.methods import Subject
from vitutor_core.bench.synthetic import synthetic_info
from vitutor_core.compare.contest import Contest
from vitutor_core.compare.price import missing_teachers
from vitutor_core.config import setting
from vitutor_core.jobs.launch import Job, run_jobs
from vitutor_core.jobs.preflight import save_untrained
from vitutor_core.jobs.reproduce import Row
from vitutor_core.paper import installed_papers, load
from vitutor_core.recipe import scales_of
from vitutor_core.schema import RunConfig

_ONE_STEP = ("train.accumulate=1", "train.compile=false", "cache.folder=null")


def on_processes(count: int, target: str, arguments: dict[str, Any]) -> None:
    """Call ``target`` in ``count`` processes that work together."""
    run_jobs([Job("bench", target, arguments)], 1, preload=(), tick=lambda: None, processes=count)


def subjects(scale: str, folder: Path, *, bf16: bool) -> list[Subject]:
    """Return each paper's lines of `vitutor compare` and the rows before them, with untrained teachers."""
    precision = setting("train.precision", "bf16" if bf16 else "fp32")
    papers = {name: paper for name, paper in installed_papers().items() if scale in scales_of(name)}
    contest = Contest(scale, papers, (*_ONE_STEP, precision))
    # A step is no slower without the weights that it starts from.
    alone = ["student.start_row=null", setting("train.batch_size", contest.budget.train.batch_size)]
    lines = [entry.row for entry in contest.entries() if entry.row.paper.package in papers]
    found = []
    for row in dict.fromkeys(row for line in lines for row in (*(before for before, _ in contest.before(line)), line)):
        config = _with_untrained_teachers(row, contest, folder).changed(alone)
        build = load(row.paper.method).build
        found.append(Subject(f"{row.paper.package}, {row.name}", build, config, contest.budget))
    return found


def _with_untrained_teachers(row: Row, contest: Contest, folder: Path) -> RunConfig:
    """Fill in teachers of the recipe's architectures with random weights, which take the same time."""
    config, found = row.config(0), []
    for path, teacher in missing_teachers(row, contest.teacher_rows(row)).items():
        file = folder / f"{teacher.fingerprint()}.safetensors"
        torch.manual_seed(0)
        save_untrained(file, teacher, synthetic_info(config))
        found.append(setting(f"{path}.weights", str(file)))
    return config.changed(found)
