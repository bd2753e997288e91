"""How the recipe of scale small was found: on held-out training images, with the plain ViT and the CNN alone.

VITUTOR_DATA_ROOT=DATA python -m benchmarks.regime --out docs/results/small/regime.json

A fifth of each class's training images is held out (`data.holdout`), a tenth of the rest is trained on, and the test
images are never read. Each run's accuracy against updates is kept. Existing entries of the file are not run again, so
that the search can be interrupted and can grow.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vitutor_core.provenance import git_state, machine, versions

COMMANDS = {
    "vit": ("dearkd", "train", "--row", "vit"),
    "cnn": ("vitutor", "teacher", "cnn"),
    "wide cnn": ("vitutor", "teacher", "cnn", "--set", "student.kwargs={channels: [32, 64, 128]}"),
}
AUGMENTATIONS = {
    "crop and flip": (),
    "RandAugment": ("augment.rand_augment=rand-m9-mstd0.5-inc1",),
    "Mixup and CutMix": ("augment.mixup=0.8", "augment.cutmix=1.0"),
    "all": ("augment.rand_augment=rand-m9-mstd0.5-inc1", "augment.mixup=0.8", "augment.cutmix=1.0"),
}
RATES = ("1e-3", "2e-3", "4e-3")
LENGTHS = (8, 16)
"""Epochs of 250 updates of 32 images, which is eight times through the 800 images."""


def main() -> None:
    """Run what is missing of the grid and write the file after each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--models", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--augment", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS))
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--epochs", nargs="+", type=int, choices=LENGTHS, default=list(LENGTHS))
    given = parser.parse_args()
    found: list[dict[str, Any]] = json.loads(given.out.read_text())["runs"] if given.out.exists() else []
    known = {run["name"] for run in found}
    grid = itertools.product(given.epochs, given.augment, given.rates, given.models)
    missing = [point for point in grid if name_of(*point) not in known]
    with ThreadPoolExecutor(given.jobs) as pool:
        for run in pool.map(lambda point: train(*point), missing):
            found.append(run)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            record = {"versions": versions(), "machine": machine(), "runs": found}
            given.out.write_text(json.dumps(record, indent=1) + "\n")
            print(f"{run['name']}: {run['curve'][-1][1]:.1f} %", flush=True)


def name_of(epochs: int, augmentation: str, rate: str, model: str) -> str:
    """Return the name of a point of the grid."""
    return f"{model}, {augmentation}, learning rate {rate}, {epochs} epochs"


def train(epochs: int, augmentation: str, rate: str, model: str) -> dict[str, Any]:
    """Train one point of the grid and return its curve, as pairs of updates and top-1 in percent."""
    settings = ["data.holdout=0.2", f"train.epochs={epochs}", f"optim.lr={rate}", *AUGMENTATIONS[augmentation]]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [*COMMANDS[model], "--scale", "small", "--out", str(out)]
        command += [part for setting in settings for part in ("--set", setting)]
        program = shutil.which(command[0], path=str(Path(sys.executable).parent)) or command[0]
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr.splitlines()[-1]}")
        with (out / "curves.csv").open() as lines:
            curve = [(int(row["step"]), float(row["top1"])) for row in csv.DictReader(lines) if row["top1"]]
            lines.seek(0)
            losses = [round(float(row["train_loss"]), 4) for row in csv.DictReader(lines)]
    name = name_of(epochs, augmentation, rate, model)
    return {"name": name, "command": command[: command.index("--out")], "settings": settings, **git_state()} | {
        "curve": curve,
        "train_loss": losses,
    }


if __name__ == "__main__":
    main()
