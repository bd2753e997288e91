"""What a teacher costs: seconds per epoch with the teacher online, with its stored logits, and without a teacher.

VITUTOR_DATA_ROOT=DATA python -m benchmarks.teacher_cache [--out FILE]

DearKD and Co-advise at scale small, with the teachers' architectures (untrained, which costs the same). The three
kinds of epoch are run in turn. The losses with stored logits must equal those of the online teacher bit for bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import ratio, report
from vitutor_core.cli.preflight import save_untrained
from vitutor_core.cli.teacher import teacher_config
from vitutor_core.config import setting
from vitutor_core.data.build import build_data, plan_data
from vitutor_core.data.types import Data
from vitutor_core.distill.taught import with_stored_logits
from vitutor_core.distributed import Processes
from vitutor_core.graph.needs import teachers_of
from vitutor_core.paper import installed_papers, load
from vitutor_core.schema import RunConfig
from vitutor_core.train.guard import FiniteGuard
from vitutor_core.train.meter import Meter
from vitutor_core.train.method import Clock
from vitutor_core.train.state import TrainState
from vitutor_core.train.update import Updater

CPU = Processes(0, 1, torch.device("cpu"))
ROWS = {
    "dearkd distill, logits only": ("dearkd", "distill", "vit"),
    "dearkd, logits and features": ("dearkd", "dearkd", "mhca"),
    "coadvise, two teachers": ("coadvise", "cnn_inn", "none"),
}
"""Paper, a row with teachers, and the row without any."""
ROUNDS = 5


class Training:
    """A run that can be driven epoch by epoch."""

    def __init__(self, paper: str, row: str, folder: Path, *, cache: Path | None = None) -> None:
        folder.mkdir(exist_ok=True)
        announced = installed_papers()[paper]
        settings = [] if cache is None else [f"cache.folder={cache}"]
        config = with_untrained_teachers(announced.resolve("small", None, row, settings), folder)
        self.data: Data = build_data(config, device=CPU.device)
        torch.manual_seed(0)
        method = load(announced.method).build(config, self.data.info)
        self.data = with_stored_logits(self.data, method.logit_teachers, config, CPU)
        updates = self.data.train.steps_per_epoch
        self.clock = Clock(0, updates, updates * config.train.epochs)
        state = TrainState.build(method, config, None, self.clock, {"method": "benchmark"})
        method.train()
        guard = FiniteGuard(state.optimizer, CPU.device)
        self.meter = Meter(CPU, {})
        self.updater = Updater(method, config, CPU, state, guard, self.meter)
        self.losses: list[float] = []

    def epoch(self, number: int) -> float:
        """Train one epoch and return its seconds."""
        started = time.perf_counter()
        for step, batches in enumerate(self.data.train.epoch(number)):
            at = number * self.clock.steps_per_epoch + step
            self.updater.update(batches, dataclasses.replace(self.clock, step=at))
        self.meter.read()
        self.losses.append(self.meter.epoch_line()["train_loss"])
        return time.perf_counter() - started


def with_untrained_teachers(config: RunConfig, folder: Path) -> RunConfig:
    """Fill in teachers that have the architecture of the recipe's and random weights."""
    found = []
    for path, teacher in teachers_of(config):
        file = folder / f"{teacher.recipe}.safetensors"
        if not file.exists():
            torch.manual_seed(1)
            save_untrained(file, teacher_config(config, "small", str(teacher.recipe)), plan_data(config).info)
        found.append(setting(f"{path}.weights", str(file)))
    return config.changed(found)


def compare(paper: str, row: str, plain: str) -> dict[str, Any]:
    """Time the three kinds of epoch of one row, after one round that fills the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = folder / "logits"
        writer = Training(paper, row, folder, cache=stored)
        for number in range(ROUNDS):
            writer.epoch(number)
        runs = {
            "online": Training(paper, row, folder / "online"),
            "stored": Training(paper, row, folder, cache=stored),
            "no teacher": Training(paper, plain, folder / "plain"),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for number, (kind, run) in itertools.product(range(ROUNDS), runs.items()):
            seconds[kind].append(run.epoch(number))
        if runs["online"].losses != runs["stored"].losses:
            raise SystemExit(f"{paper} {row}: other losses with stored logits than with the online teacher")
    medians = {kind: statistics.median(own) for kind, own in seconds.items()}
    ratios = {kind: ratio(own, seconds["no teacher"])["ratio"] for kind, own in seconds.items()}
    return {"seconds_per_epoch": medians, "over_no_teacher": ratios, "all": seconds, "losses_equal": True}


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    report("teacher_cache", {name: compare(*row) for name, row in ROWS.items()})


if __name__ == "__main__":
    main()
