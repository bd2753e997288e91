"""What DVC shows of each row: its figures as means over the seeds, and its learning curve."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitutor_core.files import replace_folder, write_csv, write_json
from vitutor_core.report.results import Run
from vitutor_core.report.table import Rows

_SHOWN = ("top1", "top5", "loss", "ece", "knn_top1", "agent_top1", "parameters", "flops", "images_per_s")
_CURVES = ("train_loss", "top1", "loss", "lr")


def write_metrics(rows: Rows, metrics: Path, curves: Path) -> None:
    """Write ``metrics/ROW.json``, means over the seeds, and ``curves/ROW.csv``, means per evaluated epoch.

    Both folders are replaced; raises as `replace_folder` does.
    """
    with replace_folder(metrics, "*.json") as figures, replace_folder(curves, "*.csv") as lines:
        for row, runs in rows.items():
            write_json(figures / f"{row}.json", row_metrics(runs))
            write_csv(lines / f"{row}.csv", _mean_curve(runs))


def row_metrics(runs: Sequence[Run]) -> dict[str, float]:
    """Return the figures of a row: means over its runs, the sample standard deviation of the accuracy, seconds."""
    found: dict[str, float] = {}
    for name in _SHOWN:
        values = [run.result.metrics[name] for run in runs if name in run.result.metrics]
        if values:
            found[name] = round(statistics.fmean(values), 4)
        if name == "top1" and len(values) > 1:
            found["top1_sd"] = round(statistics.stdev(values), 4)
    found["seconds"] = round(statistics.fmean(run.result.seconds for run in runs), 1)
    return found | {"seeds": len(runs)}


def _mean_curve(runs: Sequence[Run]) -> list[list[Any]]:
    names = [name for name in _CURVES if all(name in run.curves for run in runs)]
    lines: list[list[Any]] = [["epoch", *names]]
    for index, epoch in enumerate(runs[0].curves["epoch"]):
        values = [[run.curves[name][index] for run in runs if index < len(run.curves[name])] for name in names]
        known = [[value for value in column if value is not None] for column in values]
        if all(known):  # accuracies are taken every few epochs
            lines.append([int(epoch or 0), *(f"{statistics.fmean(column):.6g}" for column in known)])
    return lines
