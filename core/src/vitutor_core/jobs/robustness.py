"""Measure published runs out of distribution and write their figures for the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.files import write_json
from vitutor_core.graph.planned import left_out, read_planned
from vitutor_core.paper import Paper, load
from vitutor_core.recipe import shifted_sets
from vitutor_core.terminal import say


def measure_images(paper: Paper, run: Path, images: Path | None, device: str) -> dict[str, Any]:
    """Measure one finished run on a folder of images, or on its own ones, corrupted."""
    from vitutor_core.evaluate.shifts import evaluate_robustness

    load(paper.method)  # registers the paper's models with timm
    return evaluate_robustness(run, images, device)


def measure_student(paper: Paper, run: Path, sets: Sequence[str], device: str) -> dict[str, float]:
    """Measure one finished run on ``sets``."""
    from vitutor_core.distributed import choose_device
    from vitutor_core.evaluate.shifts import measure_sets, prediction

    load(paper.method)  # registers the paper's models with timm
    heads_of = prediction if paper.heads is None else load(paper.heads)
    return measure_sets(run, paper.package, shifted_sets(sets, "--sets"), choose_device(device), heads_of)


def measure_row(paper: Paper, runs: Path, sets: Sequence[str], out: Path, device: str, plan: Path | None) -> None:
    """Measure the runs ``seed-N`` below ``runs`` on ``sets``, or those of the plan, and write ``out/seed-N.json``.

    Raises `CheckpointError` where there is no run.
    """
    if left_out(plan, f"{runs.name}: not measured", out):
        return
    names = sets if plan is None else read_planned(plan)["sets"]
    if not names:
        raise ConfigError("--out: give --sets too")
    folders = sorted(runs.glob("seed-*"))
    if not folders:
        raise CheckpointError(f"{runs.absolute()}: no finished run; train one with '{paper.command} reproduce'")
    out.mkdir(parents=True, exist_ok=True)
    for run in folders:
        metrics = measure_student(paper, run, names, device)
        write_json(out / f"{run.name}.json", {"metrics": metrics})
        shown = ", ".join(f"{name} {value:.2f} %" for name, value in metrics.items() if "_" not in name)
        say(f"{runs.name}, {run.name}: {shown}")
