"""The plain method's step on an accelerator, as papers' are checked too, and that each check sees what it is for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from conformance import steps
from core.tests.train_samples import tiny_config
from vitutor_core.bench.driven import Driven
from vitutor_core.data.build import build_data
from vitutor_core.distributed import Processes
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import StepOutput
from vitutor_core.train.supervised import Supervised

CPU = torch.device("cpu")
CLIPPED = ("optim.clip_norm=1.0", "train.accumulate=2")
READS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: 1 if x.sum() > 0 else 0,
    "float": lambda x: float(x.sum()),
    "nonzero": torch.nonzero,
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "mask in a second place": lambda x: x[:, x[0] > 0],
    "write by mask": lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())),
    "masked_select": lambda x: x.masked_select(x > 0),
    "equal": lambda x: torch.equal(x, x + 1),
    "unique": lambda x: x.unique(),
    "repeats": lambda x: x[0].repeat_interleave((x[0] > 0).long()),
}
STAYS: dict[str, Callable[[torch.Tensor], object]] = {
    "where": lambda x: torch.where(x > 0, x, 0),
    "index": lambda x: x[torch.zeros(3, dtype=torch.int64)],
    "slice": lambda x: x[:1, ::2],
    "masked_fill": lambda x: x.masked_fill(x > 0, 0.0),
    "repeats": lambda x: x.repeat_interleave(2, 0),
}
MADE: dict[str, Callable[[torch.Tensor], object]] = {
    "tensor": lambda x: x.sum() * torch.tensor(0.5),
    "arange": lambda x: x + torch.arange(x.shape[1]).to(x.device),
    "as_tensor": lambda x: torch.as_tensor(3, dtype=torch.float64, device=x.device),
    "random": lambda x: x + torch.rand(x.shape).to(x.device),
}


class Meddling(Supervised):
    """Does something with the student's logits that changes nothing."""

    meddle: Callable[[torch.Tensor], object]

    def forward(self, batch: Any, clock: Any) -> StepOutput:
        logits = self.student(batch.images)
        self.meddle(logits.detach())
        return StepOutput(F.cross_entropy(logits, batch.targets))


def meddling(meddle: Callable[[torch.Tensor], object]) -> type[Meddling]:
    return type("Meddling", (Meddling,), {"meddle": staticmethod(meddle)})


def driven(method: type[Supervised] = Supervised, *settings: str) -> Driven:
    config = tiny_config(*settings)
    made = Driven(config, method.build, build_data(config, device=CPU), Processes(0, 1, CPU))
    made.updater.guard.deferred = True
    return made


def test_the_plain_step_reads_nothing():
    run = driven(Supervised, "train.ema_decay=0.9", "optim.clip_norm=1.0", "augment.mixup=0.8", "augment.cutmix=1.0")
    with steps.NoHostReads():
        assert sum(1 for epoch in range(4) for _ in run.epoch(epoch)) == 20


def test_the_guard_on_a_cpu_reads_and_is_seen():
    run = driven()
    run.updater.guard.deferred = False
    with pytest.raises(steps.HostRead), steps.NoHostReads():
        next(run.epoch(0))


@pytest.mark.parametrize("how", READS)
def test_a_read_in_a_step_is_seen(how):
    with pytest.raises(steps.HostRead), steps.NoHostReads():
        READS[how](torch.arange(6.0).view(2, 3))


def test_a_read_in_a_method_is_seen():
    run = driven(meddling(READS["item"]))
    with pytest.raises(steps.HostRead), steps.NoHostReads():
        next(run.epoch(0))


@pytest.mark.parametrize("how", STAYS)
def test_what_stays_on_the_device_is_no_read(how):
    with steps.NoHostReads():
        STAYS[how](torch.arange(6.0).view(2, 3))


def test_the_plain_step_makes_nothing_on_the_host():
    config = tiny_config(*CLIPPED)
    steps.drive_on_meta(driven(Supervised, *CLIPPED), config)


@pytest.mark.parametrize("how", MADE)
def test_a_tensor_made_on_the_host_is_seen(how):
    config = tiny_config()
    with pytest.raises(steps.MadeOnHost):
        steps.drive_on_meta(driven(meddling(MADE[how])), config)


@pytest.mark.parametrize("read", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu, torch.Tensor.item])
def test_what_no_operator_shows_fails_without_values(read):
    config = tiny_config()
    with pytest.raises((AssertionError, RuntimeError, TypeError, NotImplementedError)):
        steps.drive_on_meta(driven(meddling(read)), config)


def test_graphs_are_counted_and_breaks_refused(monkeypatch):
    with steps.captured_whole(monkeypatch) as graphs:
        run = driven(Supervised, "train.compile=true")
        assert len([loss for epoch in range(2) for loss in run.epoch(epoch)]) == 10
        assert graphs.count == 1
    with steps.captured_whole(monkeypatch), pytest.raises(ConfigError, match=r"train\.compile"):
        next(driven(meddling(lambda x: print(x.sum())), "train.compile=true").epoch(0))
    with steps.captured_whole(monkeypatch) as graphs:
        counting = type("Counting", (Supervised,), {"forward": count_calls})
        list(driven(counting, "train.compile=true").epoch(0))
        assert graphs.count > 2


def count_calls(self: Any, batch: Any, clock: Any) -> StepOutput:
    """Keep a number in the module that is another one in each step, as a graph's guard."""
    self.label = f"step {clock.step}"
    loss = F.cross_entropy(self.student(batch.images), batch.targets)
    return StepOutput(loss if self.label.endswith("0") else loss * 1.0)
