from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from conformance.suite import assert_equal_weights
from core.tests.train_samples import STEPS_PER_EPOCH, after_each_update, run, same, steps_of
from vitutor_core.errors import NonFiniteError
from vitutor_core.train import checkpoint
from vitutor_core.train.guard import FiniteGuard
from vitutor_core.train.method import StepOutput
from vitutor_core.train.supervised import Supervised


class Poisoned(Supervised):
    """Goes wrong in one step, in its loss or in one element of one gradient."""

    step = 7
    kind = "nan loss"

    @classmethod
    def build(cls, config, info):
        cls.last = super().build(config, info)
        return cls.last

    def forward(self, batch, clock):
        output = super().forward(batch, clock)
        if clock.step != self.step:
            return output
        if self.kind == "nan gradient":
            self.student.head.weight.register_hook(_spoil_one)
            return output
        return StepOutput(output.loss * float(self.kind.split()[0]))


def _spoil_one(gradient):
    gradient = gradient.clone()
    gradient[3, 5] = float("nan")
    return gradient


def poison(monkeypatch, kind, step):
    monkeypatch.setattr(Poisoned, "kind", kind)
    monkeypatch.setattr(Poisoned, "step", step)
    seen = {}
    after_each_update(
        monkeypatch,
        lambda updater: seen.update(
            {updater.state.step: {name: value.clone() for name, value in updater.method.state_dict().items()}}
        ),
    )
    return seen


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    out = tmp_path_factory.mktemp("healthy") / "run"
    run(out)
    return out


@pytest.mark.parametrize("kind", ["nan loss", "inf loss", "nan gradient"])
@pytest.mark.parametrize("step", [7, 8], ids=["logging step", "silent step"])
def test_a_bad_step_stops_the_run_before_it_reaches_a_weight(tmp_path, monkeypatch, healthy, kind, step):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        seen = poison(patch, kind, step)  # losses are logged after updates 2, 4, 6, 8, ..., that is after step 7
        what = "loss" if kind.endswith("loss") else "gradient norm"
        with pytest.raises(NonFiniteError, match=f"the {what} became NaN or infinite") as caught:
            run(out, build=Poisoned.build)
    assert caught.value.exit_code == 5
    assert max(seen) == step
    assert same(Poisoned.last.state_dict(), seen[step])
    assert checkpoint.latest(out / "checkpoints").step == STEPS_PER_EPOCH
    assert not (out / "metrics.json").exists()

    (report,) = (out / "crash").iterdir()
    details = json.loads(report.read_text())
    assert report.name == f"step-{step:08d}.json"
    assert details["step"] == step
    assert len(set(details["sample_indices"])) == 20
    assert all(float(loss) > 0 for loss in details["last_losses"])

    run(out)  # the step is healthy this time
    assert_equal_weights(out, healthy)


@pytest.fixture
def deferred(monkeypatch):
    """Make the guard behave as on an accelerator."""
    init = FiniteGuard.__init__

    def as_on_cuda(guard, optimizer, device):
        init(guard, optimizer, device)
        guard.deferred = True
        optimizer.found_inf = guard._bad
        optimizer.grad_scale = None

    monkeypatch.setattr(FiniteGuard, "__init__", as_on_cuda)


@pytest.mark.parametrize(
    ("kind", "clip", "optimiser"),
    [
        ("nan loss", "null", "adamw"),
        ("nan loss", "1.0", "adamw"),
        ("nan gradient", "null", "adamw"),
        ("nan gradient", "1.0", "adamw"),
        ("nan loss", "1.0", "sgd"),
    ],
)
def test_a_deferred_verdict_freezes_the_weights_from_the_bad_step_on(
    tmp_path, monkeypatch, deferred, kind, clip, optimiser
):
    seen = poison(monkeypatch, kind, 6)
    out = tmp_path / "run"
    settings = ("runtime.log_every_steps=9", f"optim.clip_norm={clip}", f"optim.name={optimiser}")
    with pytest.raises(NonFiniteError, match="the loss or a gradient became NaN or infinite"):
        run(out, *settings, build=Poisoned.build)
    assert max(seen) == 9  # noticed where the losses are read, three updates later
    assert not same(seen[5], seen[6])
    for step in (7, 8, 9):
        assert same(seen[step], seen[6]), step
    assert checkpoint.latest(out / "checkpoints").step == STEPS_PER_EPOCH
    assert [path.name for path in (out / "crash").iterdir()] == ["step-00000009.json"]


def test_a_deferred_verdict_is_read_before_an_epoch_is_evaluated_and_saved(tmp_path, monkeypatch, deferred):
    poison(monkeypatch, "nan loss", 7)
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError):
        run(out, "runtime.log_every_steps=1000", build=Poisoned.build)
    assert steps_of(out) == [STEPS_PER_EPOCH]
    assert [path.name for path in (out / "crash").iterdir()] == ["step-00000010.json"]


def test_a_deferred_verdict_is_read_before_a_stopped_run_is_saved(tmp_path, monkeypatch, deferred):
    poison(monkeypatch, "nan loss", 7)
    after_each_update(
        monkeypatch, lambda updater: os.kill(os.getpid(), signal.SIGTERM) if updater.state.step == 8 else None
    )
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError):
        run(out, "runtime.log_every_steps=1000", build=Poisoned.build)
    assert steps_of(out) == [STEPS_PER_EPOCH]
    assert [path.name for path in (out / "crash").iterdir()] == ["step-00000008.json"]


def test_a_healthy_run_is_the_same_with_a_deferred_verdict(tmp_path, healthy, deferred):
    run(tmp_path / "run")
    assert_equal_weights(tmp_path / "run", healthy)


def test_only_finite_values_pass():
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    guard = FiniteGuard(optimizer, torch.device("cpu"))
    guard.check(torch.tensor(3e38), "loss")
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(NonFiniteError, match="the loss"):
            FiniteGuard(optimizer, torch.device("cpu")).check(torch.tensor(float(value)), "loss")
