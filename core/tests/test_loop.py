from __future__ import annotations

import copy
import json
import math
import os
import signal
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file

from conformance.suite import Crash, assert_equal_weights
from core.tests.train_samples import (
    PLAIN_SGD,
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    Freezing,
    TwoPart,
    after_each_update,
    before_update,
    crash,
    curves,
    run,
    same,
    steps_of,
    tiny_config,
    weights,
)
from vitutor_core.data.build import build_data
from vitutor_core.distributed import Processes
from vitutor_core.errors import ConfigError, InterruptedRun
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.train import checkpoint, loop, session, update
from vitutor_core.train.method import Clock, Report, StepOutput, Traits
from vitutor_core.train.state import TrainState
from vitutor_core.train.supervised import Supervised
from vitutor_core.train.update import Updater

CPU = Processes(0, 1, torch.device("cpu"))


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, with an average of its weights."""
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out, "train.ema_decay=0.9")
    return out


def make_updater(*settings):
    config = tiny_config(*settings)
    data = build_data(config, device=CPU.device)
    torch.manual_seed(0)
    method = Supervised.build(config, data.info)
    clock = Clock(0, STEPS_PER_EPOCH, TOTAL_STEPS)
    state = TrainState.build(method, config, None, clock, {})
    return Updater(method, config, CPU, state), next(data.train.epoch(0)), clock


def gradients(method):
    return {name: p.grad.clone() for name, p in method.named_parameters()}


def test_two_micro_batches_are_one_batch_of_twice_the_size(tmp_path):
    # The same 20 images; the mean over 20 is the mean of two means over 10, so only the order of sums differs, which
    # costs some units in the last place (6e-8 of values around 1) per update.
    for accumulate in (1, 2):
        settings = (*PLAIN_SGD, "optim.lr=0.1", "train.epochs=1", f"train.accumulate={accumulate}")
        run(tmp_path / str(accumulate), *settings)
    one, two = weights(tmp_path / "1"), weights(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-6, msg=name)
    assert not same(one, two)


@pytest.mark.parametrize("clip_norm", [0.1, 1e6])
def test_clipping_is_that_of_torch(clip_norm):
    updater, micro_batches, clock = make_updater(f"optim.clip_norm={clip_norm}")
    reference = copy.deepcopy(updater.method)
    updater.update(micro_batches, clock)
    reference(micro_batches[0], clock).loss.backward()
    raw = gradients(reference)
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clip_norm)
    assert 0.1 < norm < 1e6
    assert same(gradients(updater.method), gradients(reference))
    assert same(gradients(updater.method), raw) == (clip_norm > norm)


def test_the_average_of_the_weights_follows_its_formula(tmp_path, monkeypatch, whole):
    by_hand = {}

    def average(updater):
        for name, value in updater.method.student.state_dict().items():
            by_hand[name] = by_hand[name] * 0.9 + value * 0.1

    def build(config, info):
        method = Supervised.build(config, info)
        by_hand.update({name: value.clone() for name, value in method.student.state_dict().items()})
        return method

    after_each_update(monkeypatch, average)
    result = run(tmp_path / "run", "train.ema_decay=0.9", build=build)
    found = weights(tmp_path / "run", "student_ema")
    for name, value in by_hand.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    assert not same(found, weights(tmp_path / "run"))
    assert result["metrics"]["ema_top1"] != result["metrics"]["top1"]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_forward_pass_and_not_of_the_weights(tmp_path, monkeypatch, precision, dtype):
    for module in (loop, update):  # as on a GPU
        monkeypatch.setattr(module, "effective_precision", lambda asked, _: asked)
    seen = set()

    class Watching(Supervised):
        def forward(self, batch, clock):
            if torch.is_grad_enabled():  # not before the run, where the first step is tried
                seen.add(self.student(batch.images).dtype)
            return super().forward(batch, clock)

    result = run(tmp_path / "run", f"train.precision={precision}", "train.epochs=1", build=Watching.build)
    assert seen == {dtype}
    assert result["metrics"]["loss"] < 2.5
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {torch.float32}


class Doubling:
    """An update rule that adds twice the gradient, in two passes."""

    def __init__(self):
        self.scales = []

    def __call__(self, forward, *, scale, no_sync):
        self.scales.append(scale)
        with no_sync():
            (forward().loss * scale).backward()
        output = forward()
        (output.loss * scale).backward()
        return output


def test_the_update_rule_of_a_method_is_used(tmp_path):
    rule = Doubling()

    class Ruled(Supervised):
        def update_rule(self):
            return rule

    settings = (*PLAIN_SGD, "train.epochs=1", "train.accumulate=2")
    run(tmp_path / "rule", *settings, "optim.lr=0.05", build=Ruled.build)
    run(tmp_path / "twice", *settings, "optim.lr=0.1")
    assert rule.scales == [0.5] * 2 * STEPS_PER_EPOCH
    # Doubling is exact in binary floating point, so twice the gradient is twice the rate. The sum over two
    # micro-batches is taken in another order, though: a + a + b + b instead of 2 * (a + b).
    for name, value in weights(tmp_path / "twice").items():
        torch.testing.assert_close(weights(tmp_path / "rule")[name], value, rtol=0, atol=1e-6, msg=name)


def test_no_sync_is_entered_for_all_but_the_last_micro_batch(tmp_path):
    entered = []

    class Wrapped(torch.nn.Module):
        """Stands for DDP."""

        def __init__(self, method):
            super().__init__()
            self.module = method

        def forward(self, *arguments):
            entered.append("forward")
            return self.module(*arguments)

        def no_sync(self):
            entered.append("no_sync")
            return nullcontext()

    updater, micro_batches, clock = make_updater("train.accumulate=4")
    updater._wrapped = Wrapped(updater.method)
    updater.update(micro_batches, clock)
    assert entered == ["no_sync", "forward"] * 3 + ["forward"]


def test_losses_parts_and_reported_metrics_are_in_the_curves(tmp_path, monkeypatch):
    losses = []

    class Telling(Supervised):
        def forward(self, batch, clock):
            loss = super().forward(batch, clock).loss
            if torch.is_grad_enabled():  # not before the run, where the first step is tried
                losses.append(loss.item())
            return StepOutput(loss, parts={"half_loss": loss / 2})

        def report(self, probe=None, evaluation=None):
            if probe is None:
                return Report()
            assert probe.shape == (64, 3, 16, 16)
            return Report({"share_of_ink": probe.mean().item()})

    result = run(tmp_path / "run", "runtime.eval_every_epochs=2", build=Telling.build)
    lines = curves(tmp_path / "run")
    assert [line["epoch"] for line in lines] == ["0", "1", "2"]
    assert [line["step"] for line in lines] == ["5", "10", "15"]
    for epoch, line in enumerate(lines):
        mean = sum(losses[epoch * STEPS_PER_EPOCH :][:STEPS_PER_EPOCH]) / STEPS_PER_EPOCH
        assert float(line["train_loss"]) == pytest.approx(mean, rel=1e-6)
        assert float(line["half_loss"]) == pytest.approx(mean / 2, rel=1e-6)
    assert [bool(line["top1"]) for line in lines] == [False, True, True]
    assert float(lines[-1]["share_of_ink"]) == result["metrics"]["share_of_ink"]


def test_figures_of_the_whole_set_are_taken_once_at_the_end_and_survive_a_resume(tmp_path, monkeypatch):
    seen = []

    class Final(Supervised):
        traits = Traits(measures=True)

        def report(self, probe=None, evaluation=None):
            if evaluation is None:
                return Report()
            seen.append(sum(len(targets) for _, targets in evaluation))
            return Report({"images_twice": 2.0 * seen[-1]})

    result = run(tmp_path / "run", build=Final.build)
    assert seen == [97]
    assert result["metrics"]["images_twice"] == 194.0
    assert "images_twice" not in curves(tmp_path / "run")[-1]
    (tmp_path / "run" / "metrics.json").unlink()  # as if it was killed after its last checkpoint
    again = run(tmp_path / "run", build=Final.build)
    assert {**again, "seconds": None} == {**result, "seconds": None}
    assert again["correct"]["top1"]


def test_a_run_may_stop_before_the_end_of_its_schedule(tmp_path):
    run(tmp_path / "run", "train.schedule_epochs=30", "optim.schedule_unit=epoch", "optim.min_lr=0.0")
    lr = tiny_config().optim.lr
    rates = [float(line["lr"]) for line in curves(tmp_path / "run")]
    assert rates == pytest.approx([lr * (1 + math.cos(math.pi * epoch / 30)) / 2 for epoch in range(3)])


def test_the_weights_that_a_run_starts_from_are_part_of_its_identity(tmp_path):
    run(tmp_path / "first")
    start = f"student.weights={tmp_path / 'first'}"
    run(tmp_path / "second", start)
    assert not same(weights(tmp_path / "first"), weights(tmp_path / "second"))
    run(tmp_path / "second", f"student.weights={tmp_path / 'first' / 'student.safetensors'}")  # the same ones
    with pytest.raises(ConfigError, match="start"):
        run(tmp_path / "second", f"student.weights={tmp_path / 'second'}")


def test_a_compiled_run_has_the_same_losses(tmp_path, monkeypatch):
    compiled = []
    original = torch.compile

    def cheap(module):
        compiled.append(type(module))
        return original(module, backend="eager")

    monkeypatch.setattr(torch, "compile", cheap)
    for value in ("false", "true"):
        run(tmp_path / value, f"train.compile={value}", "train.epochs=2", build=TwoPart.build)
    assert compiled == [TwoPart, TwoPart]  # again when a part is gone
    # This backend runs the captured graph with the same kernels, so nothing may differ.
    assert curves(tmp_path / "true") == curves(tmp_path / "false")


def test_a_method_that_keeps_its_parts_is_wrapped_once(tmp_path, monkeypatch):
    wrapped = []
    monkeypatch.setattr(Processes, "wrap", lambda _, module: wrapped.append(module) or module)
    run(tmp_path / "one")
    assert len(wrapped) == 1
    run(tmp_path / "two", build=TwoPart.build)
    assert len(wrapped) == 3


@pytest.mark.parametrize("method", [TwoPart, Freezing])
def test_a_part_that_leaves_is_forgotten_and_resumes_on_both_sides(tmp_path, monkeypatch, method):
    trained = set()
    after_each_update(
        monkeypatch,
        lambda updater: trained.add(
            (updater.state.step, len([p for p in updater.method.parameters() if p.grad is not None]))
        ),
    )
    whole = run(tmp_path / "whole", build=method.build)
    counts = dict(trained)
    assert counts[STEPS_PER_EPOCH] == counts[STEPS_PER_EPOCH + 1] + 2  # its weight and its bias

    broken = tmp_path / "broken"
    for step in (STEPS_PER_EPOCH - 2, STEPS_PER_EPOCH + 2):  # before and after the switch
        with monkeypatch.context() as patch:
            before_update(patch, step, stop)
            with pytest.raises(InterruptedRun):
                run(broken, build=method.build)
        assert steps_of(broken)[-1] == step + 1
    with monkeypatch.context() as patch:  # in the last epoch, from the checkpoint at the end of the one before
        before_update(patch, 2 * STEPS_PER_EPOCH + 1, crash)
        with pytest.raises(Crash):
            run(broken, build=method.build)
    again = run(broken, build=method.build)
    assert_equal_weights(tmp_path / "whole", broken)
    assert again["metrics"] == whole["metrics"]
    assert curves(broken) == curves(tmp_path / "whole")
    assert [bool(line.get("aside_loss")) for line in curves(broken)] == [True, False, False]


def test_resumption_at_the_switch_has_the_shape_of_the_epoch_before(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", build=TwoPart.build)
    before_update(monkeypatch, STEPS_PER_EPOCH, crash)  # the newest checkpoint still has the part
    with pytest.raises(Crash):
        run(tmp_path / "broken", build=TwoPart.build)
    names = load_file(checkpoint.latest(tmp_path / "broken" / "checkpoints").path / "method.safetensors").keys()
    assert "aside.weight" in names
    assert run(tmp_path / "broken", build=TwoPart.build)["metrics"] == whole["metrics"]


@pytest.mark.parametrize("moment", ["before saving", "after saving", "in the next epoch"])
def test_curves_are_complete_after_a_kill(tmp_path, monkeypatch, whole, moment):
    with monkeypatch.context() as patch:
        if moment == "in the next epoch":
            before_update(patch, STEPS_PER_EPOCH + 2, crash)
        else:
            patch.setattr(checkpoint, "save" if moment == "before saving" else "prune", lambda *_, **__: crash())
        with pytest.raises(Crash):
            run(tmp_path / "run", "train.ema_decay=0.9")
    run(tmp_path / "run", "train.ema_decay=0.9")
    assert curves(tmp_path / "run") == curves(whole)
    assert_equal_weights(tmp_path / "run", whole)
    assert same(weights(tmp_path / "run", "student_ema"), weights(whole, "student_ema"))


def test_a_run_killed_after_its_last_checkpoint_publishes_what_it_had(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        patch.setattr(session, "save_model", lambda *_: crash())
        with pytest.raises(Crash):
            run(tmp_path / "run", "train.ema_decay=0.9")
    monkeypatch.setattr(Updater, "update", lambda *_: pytest.fail("trained again"))
    again = run(tmp_path / "run", "train.ema_decay=0.9")
    assert again["metrics"] == json.loads((whole / "metrics.json").read_text())["metrics"]
    assert_equal_weights(tmp_path / "run", whole)
    assert same(weights(tmp_path / "run", "student_ema"), weights(whole, "student_ema"))


def test_checkpoints_are_the_two_newest_and_the_best(tmp_path, monkeypatch):
    scores = iter([10.0, 90.0, 20.0, 30.0, 40.0, 50.0])
    monkeypatch.setattr(loop, "measure", lambda *_, **__: Measured({"top1": next(scores), "images": 1.0}, {}))
    with monkeypatch.context() as patch:
        before_update(patch, 4 * STEPS_PER_EPOCH, crash)
        with pytest.raises(Crash):
            run(tmp_path / "run", "train.epochs=6")
    assert steps_of(tmp_path / "run") == [10, 15, 20]
    run(tmp_path / "run", "train.epochs=6")
    assert steps_of(tmp_path / "run") == [10, 25, 30]
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").state["best_step"] == 10
