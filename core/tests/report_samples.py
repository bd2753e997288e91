"""A synthetic paper and synthetic results, for the tests of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitutor_core.report.paper import PaperResults, load_paper_results
from vitutor_core.report.results import load_results
from vitutor_core.report.table import build_table

PAPER = """
paper: demo
title: A synthetic <paper>
citation: Nobody, nowhere
scale: imagenet
setting: a large data set
methods: {plain: plain model, ours: OURS, part: half of OURS}
curves: [plain, ours]
series:
  - {id: heights, title: Heights, caption: How high., axis: height (m), columns: height_of_*_here, rows: [plain, ours]}
tables:
  - id: ablation
    title: Table A
    caption: parts
    metric: top1
    columns: {a: A, top1: Top-1}
    measured: [top1]
    baseline: plain
    figure: ablation
    rows:
      - {label: plain, cells: {a: false, top1: 70.0}, row: plain}
      - {label: with A, cells: {a: true, top1: 71.5}, row: part}
      - {label: all, cells: {a: true, top1: 72.3}, row: ours}
      - {label: not ours, cells: {top1: 60.0}}
    comparisons: [{row: ours, to: plain, headline: true}, {row: part, to: plain}]
  - id: data
    title: Table B
    caption: shares
    metric: top1
    columns: {plain: Plain, ours: Ours}
    measured: [plain, ours]
    baseline: plain
    figure: fraction
    rows:
      - {label: 10 %, fraction: 0.1, cells: {plain: 40.0, ours: 54.0}, row: {plain: plain_10, ours: ours_10}}
      - {label: 100 %, fraction: 1.0, cells: {plain: 70.0, ours: 72.3}, row: {plain: plain, ours: ours}}
    comparisons: [{row: ours_10, to: plain_10}, {row: ours_10, to: plain}]
  - id: other
    title: Table C
    caption: not reproduced
    metric: top1
    columns: {top1: Top-1}
    measured: [top1]
    rows: [{label: somebody else, cells: {top1: 80.0}}]
"""


def write_run(root: Path, row: str, seed: int, top1: float, changes: dict[str, Any] | None = None) -> Path:
    """Publish one synthetic result; ``changes`` replaces keys of its metrics.json."""
    folder = root / "demo" / row / f"seed-{seed}"
    folder.mkdir(parents=True)
    heights = {f"height_of_{number}_here": number - 0.5 for number in (10, 9)} if row == "ours" else {}
    result = {
        "paper": "demo",
        "row": row,
        "scale": "small",
        "seed": seed,
        "metrics": {"top1": top1, "images": 900.0},
        "epochs": 4,
        "updates": 56,
        "train_images": 90 if row.endswith("_10") else 898,
        "fraction": 0.1 if row.endswith("_10") else 1.0,
        "fingerprint": f"{row}{seed}",
        "data_fingerprint": "d",
        "teachers": {"cnn": {"name": "cnn", "sha256": "3f" * 32, "top1": 99.0}} if row == "ours" else {},
        "command": f"demo train --row {row} --set seed={seed} > '<out>'",
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "versions": {"python": "3.11"},
        "machine": {"processor": "<b>chip</b> & co", "gpu": None},
        "events": {"help leaves": 3} if row == "ours" else {},
        "config": {"seed": seed, "train": {"epochs": 4}, "runtime": {"workers": seed}},
        "seconds": 1.5,
    }
    (folder / "metrics.json").write_text(json.dumps(result | (changes or {})))
    header = ["epoch", "step", "train_loss", "top1", *heights]
    lines = [
        [epoch, 14 * (epoch + 1), 2.0 - epoch / 4, "" if epoch == 1 else top1 - 3 + epoch, *heights.values()]
        for epoch in range(4)
    ]
    (folder / "curves.csv").write_text("\n".join(",".join(map(str, line)) for line in [header, *lines]) + "\n")
    return folder


def write_row(root: Path, row: str, values: list[float]) -> None:
    for seed, value in enumerate(values):
        write_run(root, row, seed, value)


def demo_paper(folder: Path) -> PaperResults:
    path = folder / "paper_results.yaml"
    path.write_text(PAPER)
    return load_paper_results(path)


def build(paper: PaperResults, root: Path) -> dict[str, Any]:
    table = build_table(paper, load_results(root, "demo"))
    return json.loads(json.dumps(table, allow_nan=False))


def line_of(table: dict[str, Any], row: str) -> dict[str, Any]:
    return next(line for part in table["tables"] for line in part["lines"] if line["row"] == row)


def pair_of(table: dict[str, Any], row: str, to: str) -> dict[str, Any]:
    pairs = (pair for part in table["tables"] for pair in part["comparisons"])
    return next(pair for pair in pairs if (pair["row"], pair["to"]) == (row, to))
