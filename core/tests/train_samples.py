"""Training runs of half a second, for the tests of the training parts: a tiny ViT on a hundred digits."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from conformance.suite import Crash, assert_equal_weights
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.types import Source
from vitutor_core.schema import RunConfig
from vitutor_core.train.method import StepOutput
from vitutor_core.train.session import BuildMethod, RunLabel, train
from vitutor_core.train.supervised import Supervised
from vitutor_core.train.update import Updater

STEPS_PER_EPOCH = 5
TOTAL_STEPS = 15

TINY = {
    "data": {"source": "digits", "image_size": 16, "per_class": 10},
    "augment": {"pad_crop": 2},
    "student": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
    },
    "optim": {"lr": 1e-2, "schedule_unit": "update"},
    "train": {"epochs": 3, "batch_size": 20},
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every_steps": 2, "eval_batch_size": 450},
}
"""100 training images, so 5 updates an epoch and 15 in all."""

PLAIN_SGD = ("optim.name=momentum", "optim.momentum=0.0", "optim.weight_decay=0.0", "optim.schedule=constant")
"""An update is lr times the gradient: for tests that compare gradients through the weights they lead to."""


def tiny_config(*settings: str) -> RunConfig:
    return RunConfig.from_mapping(TINY, where="tiny").changed(settings)


def run(out: Path, *settings: str, build: BuildMethod = Supervised.build, paper: str = "supervised") -> dict[str, Any]:
    """Train the tiny run into ``out``, with a short evaluation."""
    with mock.patch("vitutor_core.data.build.open_source", return_value=small_digits()):
        record = train(tiny_config(*settings), build, label=RunLabel(paper, "test", "digits", "test"), out=out)
    return record.model_dump(mode="json")


@functools.cache
def small_digits() -> Source:
    """Return the digits with 97 images for evaluation; with all 896 it would take most of a test's time."""
    source = digits_source()
    return replace(source, evaluation=replace(source.evaluation, labels=source.evaluation.labels[:97]))


def weights(out: Path, name: str = "student") -> dict[str, Tensor]:
    return load_file(out / f"{name}.safetensors")


def curves(out: Path) -> list[dict[str, str]]:
    """Return the lines of curves.csv without what depends on the clock."""
    with (out / "curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return [
        {name: value for name, value in line.items() if name not in {"images_per_s", "data_wait"}} for line in lines
    ]


def steps_of(out: Path) -> list[int]:
    """Return the steps of the checkpoints of a run."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (out / "checkpoints").iterdir())


def before_update(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Call ``act`` once, before the update of ``step``."""
    update = Updater.update
    pending = [step]

    def watched(updater: Updater, micro_batches: Any, clock: Any) -> None:
        if pending == [clock.step]:
            pending.clear()
            act()
        update(updater, micro_batches, clock)

    monkeypatch.setattr(Updater, "update", watched)


def crash() -> None:
    raise Crash


def after_each_update(monkeypatch: pytest.MonkeyPatch, see: Callable[[Updater], object]) -> None:
    """Call ``see`` after every update."""
    update = Updater.update

    def watched(updater: Updater, micro_batches: Any, clock: Any) -> None:
        update(updater, micro_batches, clock)
        see(updater)

    monkeypatch.setattr(Updater, "update", watched)


class TwoPart(Supervised):
    """Supervised, with a linear head of its own on the pixels, which ``leave`` takes away from the second epoch on."""

    def __init__(self, student: nn.Module, leave: str = "removed") -> None:
        super().__init__(student)
        self.aside: nn.Linear | None = nn.Linear(3 * 16 * 16, 10)
        self._leave = leave

    def forward(self, batch: Any, clock: Any) -> StepOutput:
        loss = super().forward(batch, clock).loss
        if self.aside is None or not self.aside.weight.requires_grad:
            return StepOutput(loss)
        aside = F.cross_entropy(self.aside(batch.images.flatten(1)), batch.targets)
        return StepOutput(loss + aside, parts={"aside_loss": aside})

    def on_epoch(self, clock: Any) -> bool:
        if clock.epoch == 0 or self.aside is None or not self.aside.weight.requires_grad:
            return False
        if self._leave == "frozen":
            self.aside.requires_grad_(False)
        else:
            self.aside = None
        return True


class Freezing(TwoPart):
    def __init__(self, student: nn.Module) -> None:
        super().__init__(student, leave="frozen")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Return whether two state dicts are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@contextlib.contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Let no file grow above ``free_bytes``, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, before[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def assert_same_run(out: Path, whole: Path) -> None:
    """Check that a run ended as one that was left alone."""
    assert_equal_weights(out, whole)
    assert curves(out) == curves(whole)
    one, other = (json.loads((folder / "metrics.json").read_text()) for folder in (out, whole))
    assert [one[name] for name in ("metrics", "correct")] == [other[name] for name in ("metrics", "correct")]
    assert not list(out.rglob("*.tmp*"))
