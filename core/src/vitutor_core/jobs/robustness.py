"""Measure runs out of distribution, and those of a row for the tables. Imports nothing heavy itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.files import write_json
from vitutor_core.graph.planned import left_out, read_planned
from vitutor_core.paper import Paper, load
from vitutor_core.recipe import shifted_sets
from vitutor_core.terminal import say


def measure(
    paper: Paper,
    run: Path,
    *,
    images: Path | None,
    sets: Sequence[str] | None,
    out: Path | None,
    device: str,
    plan: Path | None,
) -> None:
    """Measure the runs of a row on ``sets`` into ``out``, or print the figures of one run.

    One run is measured on ``sets``, else on a folder of ``images``, else on its own images, corrupted.
    """
    if images is not None and (sets or out is not None):
        raise ConfigError("--images: give it without --sets and --out")
    if out is not None:
        measure_row(paper, run, sets or (), out, device, plan)
        return
    from vitutor_core.evaluate.shifts import evaluate_robustness

    load(paper.method)  # registers the paper's models with timm
    found = measure_student(paper, run, sets, device) if sets else evaluate_robustness(run, images, device)
    say(json.dumps(found, indent=2))


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
