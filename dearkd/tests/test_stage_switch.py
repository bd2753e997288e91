"""Stage II begins at the right update, without the teacher, and changes nothing else; resumption cannot tell."""

from __future__ import annotations

import csv
import gc
import math
import weakref

import pytest
import timm
import torch
from safetensors.torch import load_file

from dearkd.method import DearKD
from vitutor_core.distill import FrozenTeacher
from vitutor_core.errors import InterruptedRun
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

SWITCH = 6
"""The first update of stage II: epoch 2 of 3, three updates each."""
RPE = {f"blocks.{block}.attn.{name}" for block in range(3) for name in ("alpha", "delta")}
RESUMPTIONS = [(3, False), (5, False), (6, False), (7, False), (6, True), (7, True)]
STAGE_ONE_ONLY = ("aligners.", "head_dist.")


@pytest.fixture(scope="module")
def switched(dearkd_config, dearkd_train, tmp_path_factory):
    return dearkd_train(dearkd_config(), tmp_path_factory.mktemp("switched") / "run")


@pytest.fixture(scope="module")
def single_stage(dearkd_config, dearkd_train, tmp_path_factory):
    config = dearkd_config(row="mhca_hidden_distill")
    return dearkd_train(config, tmp_path_factory.mktemp("single_stage") / "run")


@pytest.fixture(scope="module")
def frozen(dearkd_config, dearkd_train, tmp_path_factory):
    return dearkd_train(dearkd_config("method.freeze_rpe=true"), tmp_path_factory.mktemp("frozen") / "run")


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def curves(run):
    with (run.path / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def checkpoints(run):
    return {
        folder.name: {path.stem: set(load_file(path)) for path in folder.glob("*.safetensors")}
        for folder in (run.path / "checkpoints").iterdir()
    }


def test_the_teacher_runs_once_per_update_of_stage_one(switched, single_stage):
    # Without the teacher an update does less work; its time is not measured here.
    assert [update.teacher_calls for update in switched.updates] == [1] * SWITCH + [0] * 3
    assert [update.teacher_calls for update in single_stage.updates] == [1] * 9


def test_stage_two_cannot_need_the_teacher(dearkd_config, tmp_path, monkeypatch):
    call, update = FrozenTeacher.__call__, Updater.update
    models, step = [], 0

    def raising(teacher, *args, **kwargs):
        if step >= first_broken:
            raise RuntimeError("the teacher is broken")
        return call(teacher, *args, **kwargs)

    def counting(updater, micro_batches, clock):
        nonlocal step
        step = clock.step
        if step == 0:
            models.append(weakref.ref(updater.method._teacher.model))
        if step == SWITCH:
            gc.collect()
            assert models[-1]() is None
        update(updater, micro_batches, clock)

    monkeypatch.setattr(FrozenTeacher, "__call__", raising)
    monkeypatch.setattr(Updater, "update", counting)
    label = RunLabel("dearkd", "test", "digits", "test")
    first_broken = SWITCH
    assert train(dearkd_config(), DearKD.build, label=label, out=tmp_path / "after").updates == 9
    first_broken = SWITCH - 1
    step = 0
    with pytest.raises(RuntimeError, match="the teacher is broken"):
        train(dearkd_config(), DearKD.build, label=label, out=tmp_path / "before")


def test_the_learning_rate_is_one_cosine(switched, single_stage):
    peak, low, warmup, total = 3e-3, 1e-5, 3, 9
    cosine = [low + (peak - low) / 2 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    expected = [low + (peak - low) * step / warmup for step in range(warmup)] + cosine[warmup:]
    assert [update.lr for update in switched.updates] == pytest.approx(expected, rel=1e-12)
    assert [update.lr for update in single_stage.updates] == [update.lr for update in switched.updates]


def test_stage_one_does_not_know_of_the_switch(switched, single_stage):
    for one, other in zip(switched.updates[:SWITCH], single_stage.updates[:SWITCH], strict=True):
        assert torch.equal(one.loss, other.loss)
        assert_equal(one.weights, other.weights)
    assert not torch.equal(switched.updates[SWITCH].loss, single_stage.updates[SWITCH].loss)


def test_moments_go_on_over_the_switch(switched):
    before, at = switched.updates[SWITCH - 1], switched.updates[SWITCH]
    kept = {name: value for name, value in before.moments.items() if not name.startswith(STAGE_ONE_ONLY)}
    assert len(before.moments) > len(kept)
    assert_equal(kept, at.moments_before)
    for name, gradient in at.gradients.items():
        first, second = (kept[f"{name}/{key}"] for key in ("exp_avg", "exp_avg_sq"))
        assert (first != 0).any()
        torch.testing.assert_close(at.moments[f"{name}/exp_avg"], 0.9 * first + 0.1 * gradient, rtol=1e-5, atol=1e-9)
        expected = 0.999 * second + 0.001 * gradient**2
        torch.testing.assert_close(at.moments[f"{name}/exp_avg_sq"], expected, rtol=1e-5, atol=1e-12)
        assert at.moments[f"{name}/step"].item() == SWITCH + 1
    assert any(name.startswith(STAGE_ONE_ONLY) for name in before.optimised)
    assert at.optimised == at.gradients.keys() == {f"student.{name}" for name in at.weights}


def test_alpha_and_delta_stay_at_the_switch_and_learn_after_it(switched):
    before, at = switched.updates[SWITCH - 1], switched.updates[SWITCH]
    assert_equal(before.weights, at.weights_before)
    for name in RPE:
        assert (before.weights[name] != switched.updates[0].weights_before[name]).any()
        assert (at.weights[name] != before.weights[name]).any()


def test_freeze_rpe_stops_alpha_and_delta_and_nothing_else(switched, frozen):
    at, last = frozen.updates[SWITCH].weights_before, frozen.updates[-1].weights
    assert_equal(at, switched.updates[SWITCH].weights_before)
    assert {name for name in at if torch.equal(at[name], last[name])} == RPE
    assert frozen.updates[-1].optimised == {f"student.{name}" for name in at.keys() - RPE}


def test_stage_two_has_no_stage_one_weights_in_any_file(switched):
    found = checkpoints(switched)
    stage_one, stage_two = found[f"step-{SWITCH:08d}"], found["step-00000009"]
    student = set(timm.create_model("dearkd_tiny_patch16_224", depth=4, mhca_blocks=3).state_dict())
    own = {f"student.{name}" for name in student}
    added = {name.split(".")[0] for name in stage_one["method"] - own}
    assert added == {"aligners", "head_dist"}
    assert any(name.startswith(STAGE_ONE_ONLY) for name in stage_one["optimizer"])
    assert stage_two["method"] == own
    assert {name.rpartition("/")[0] for name in stage_two["optimizer"]} == own
    for weights in (stage_one["ema"], stage_two["ema"]):
        assert weights == student
    for name in ("student", "student_ema"):
        assert set(load_file(switched.path / f"{name}.safetensors")) == student


def test_a_single_stage_keeps_the_teacher_to_the_end(single_stage):
    last = checkpoints(single_stage)["step-00000009"]["method"]
    assert any(name.startswith("aligners.") for name in last)
    assert any(name.startswith("head_dist.") for name in last)
    exported = load_file(single_stage.path / "student.safetensors")
    assert not [name for name in exported if name.startswith(STAGE_ONE_ONLY)]
    assert all(line["hidden_loss"] for line in curves(single_stage))


def test_curves_hold_the_unweighted_terms(switched):
    lines = curves(switched)
    for line in lines[:2]:
        total, label, logit, hidden = (float(line[f"{n}_loss"]) for n in ("train", "label", "logit", "hidden"))
        assert total == pytest.approx(0.5 * label + 0.5 * logit + hidden, rel=1e-6)
    assert lines[2]["train_loss"] == lines[2]["label_loss"]
    assert lines[2]["logit_loss"] == lines[2]["hidden_loss"] == ""
    losses = torch.stack([update.loss for update in switched.updates]).double()
    for line, updates in zip(lines, losses.split(3), strict=True):
        assert float(line["train_loss"]) == pytest.approx(updates.mean().item(), rel=1e-6)
    for block in range(4):
        name = f"attention_distance_block{block}"
        assert float(lines[-1][name]) == switched.result["metrics"][name] > 0


@pytest.mark.parametrize(("stop_at", "freeze"), RESUMPTIONS)
def test_resumption_around_the_switch(switched, frozen, dearkd_config, dearkd_train, tmp_path, stop_at, freeze):
    whole = frozen if freeze else switched
    config = dearkd_config(f"method.freeze_rpe={str(freeze).lower()}")
    run = type(whole)(tmp_path / "run")
    with pytest.raises(InterruptedRun):
        dearkd_train(config, run.path, stop_at=stop_at, run=run)
    assert len(run.updates) == stop_at
    dearkd_train(config, run.path, run=run)
    assert [update.step for update in run.updates] == list(range(9))
    for one, other in zip(run.updates, whole.updates, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert one.teacher_calls == other.teacher_calls
    assert_equal(run.updates[-1].moments, whole.updates[-1].moments)
    for name in ("student.safetensors", "student_ema.safetensors"):
        assert_equal(load_file(run.path / name), load_file(whole.path / name))


SWITCHES = {
    "MHCA only": ((), "mhca", 0),
    "distillation only": ((), "distill", 9),
    "without MHCA and stages": ((), "hidden_distill", 9),
    "without MHCA": (("student.kwargs.mhca_blocks=0",), None, 6),
    "without hidden loss": (("method.pairs=[]",), None, 6),
    "without distillation": (("method.distill=none",), None, 6),
    "without stages": (("method.two_stage=false",), None, 9),
    "distillation token": ((), "deit_100", 9),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_every_switch_trains(name, dearkd_config, dearkd_train, tmp_path):
    settings, row, taught = SWITCHES[name]
    run = dearkd_train(dearkd_config(*settings, row=row), tmp_path / "run")
    assert [update.teacher_calls for update in run.updates] == [1] * taught + [0] * (9 - taught)
    assert all(update.loss.isfinite() for update in run.updates)
    assert run.result["metrics"]["images"] > 0
    first, last = run.updates[0].weights_before, run.updates[-1].weights
    assert not [key for key in last if torch.equal(first[key], last[key])]
