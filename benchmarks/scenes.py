"""How scale scenes was found: on held-out training digits and photographs, with the plain ViT and the CNN alone.

python -m benchmarks.scenes --out docs/results/scenes/regime.json [--trials NAME ...] [--models NAME ...]

Of the training digits a fifth of each class is held out, and of the left halves of the photographs, the quarter at the
right; evaluation digits and the right halves are never seen. All else is as at scale digits.
Existing entries of the file are not run again, so that the search can be interrupted and can grow.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bootstrapping_vit.cli import PAPER as BOOTSTRAPPING
from dearkd.cli import PAPER as DEARKD
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.scenes import Look, load_photographs, paste
from vitutor_core.data.sources.subsets import hold_out
from vitutor_core.paper import Paper, load, teacher_recipe
from vitutor_core.provenance import git_state, machine, versions
from vitutor_core.recipe import resolve
from vitutor_core.schema import RunConfig
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised

MODELS: dict[str, tuple[Paper | None, str, tuple[str, ...]]] = {
    "vit": (DEARKD, "vit", ()),
    "cnn": (None, "cnn", ()),
    "bootstrapping vit": (BOOTSTRAPPING, "vit", ("data.fraction=1.0", "train.batch_size=32")),
    "bootstrapping agent": (BOOTSTRAPPING, "agent", ("data.fraction=1.0", "train.batch_size=32")),
}
"""Paper, row and settings of each: plain ViTs and CNNs alone."""
EVALUATED = 5
"""Images of each held-out digit: there are fewer than two hundred of these."""
TRIALS = {
    "digits of 12 to 16 px, 10 degrees, shade 0.6": Look(16, (12, 16), 10, 0.6),
    "digits of 12 to 16 px, 10 degrees, shade 0.7": Look(16, (12, 16), 10, 0.7),
    "digits of 12 to 16 px, 10 degrees, shade 0.8": Look(16, (12, 16), 10, 0.8),
    "digits of 12 to 16 px, 20 degrees, shade 0.6": Look(16, (12, 16), 20, 0.6),
    "digits of 10 to 14 px, 10 degrees, shade 0.6": Look(16, (10, 14), 10, 0.6),
}


def main() -> None:
    """Run what is missing of the trials and write the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["vit", "cnn"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = json.loads(given.out.read_text())["runs"] if given.out.exists() else []
    known = {(run["trial"], run["model"]) for run in runs}
    for name in given.trials:
        for model in given.models:
            if (name, model) not in known:
                runs.append({"trial": name, "model": model} | run(TRIALS[name], model))
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(
                    json.dumps({"versions": versions(), "machine": machine(), "runs": runs}, indent=1) + "\n"
                )
                print(f"{name}, {model}: {runs[-1]['curve'][-1][1]:.1f} %, {runs[-1]['cpu_s']:.1f} s", flush=True)


def run(look: Look, model: str) -> dict[str, Any]:
    """Train a model and return its curve, as pairs of updates and top-1 in percent, and its CPU seconds."""
    paper, row, settings = MODELS[model]
    settings = ("data.source=scene_digits", f"data.image_size={look.side}", *settings)
    build: Any = Supervised.build
    if paper is None:
        config = resolve(RunConfig, teacher_recipe("digits", row), row=row, settings=settings)
    else:
        config, build = paper.resolve("digits", None, row, settings), load(paper.method).build
    photographs = load_photographs()[:, :, :320]
    look = look._replace(copies=(look.copies[0], EVALUATED))
    images = paste(hold_out(digits_source(), 0.2, 0), photographs[:, :, :240], photographs[:, :, 240:], look)
    begun = time.process_time()
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("vitutor_core.data.sources.open._open", return_value=images),
    ):
        out = Path(folder) / "run"
        train(config, build, label=RunLabel("scenes", model, "digits", "benchmarks.scenes"), out=out)
        seconds = time.process_time() - begun
        with (out / "curves.csv").open() as lines:
            rows = list(csv.DictReader(lines))
    return {
        "look": look._asdict(),
        "settings": settings,
        **git_state(),
        "cpu_s": round(seconds, 1),
        "curve": [(int(row["step"]), round(float(row["top1"]), 2)) for row in rows if row["top1"]],
        "train_loss": [round(float(row["train_loss"]), 4) for row in rows],
    }


if __name__ == "__main__":
    main()
