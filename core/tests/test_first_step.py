"""What cannot work in the first step is one line that names the field, before anything is trained."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.tests.train_samples import run, same, small_digits, tiny_config
from vitutor_core.config import fingerprinted
from vitutor_core.data.build import plan_data
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.jobs import preflight
from vitutor_core.jobs import teacher as teachers
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.schema import RunConfig, TeacherConfig
from vitutor_core.train import dry
from vitutor_core.train.method import Clock, StepOutput
from vitutor_core.train.supervised import Supervised

INFO = replace(plan_data(tiny_config()).info, name="digits")
TOO_DEEP = ["inception_v3", "densenet121"]


class Broken(Supervised):
    """Fails in a way of its own."""

    how: type[Exception] = RuntimeError

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        raise self.how("the sizes\n do not match")


@pytest.mark.parametrize("small", [0, 10**9])  # on the meta device, on the CPU
@pytest.mark.parametrize("name", TOO_DEEP)
def test_a_student_that_is_too_deep_is_named_with_its_images(
    name: str, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry, "SMALL", small)
    config = tiny_config(f"student={{name: {name}}}")
    method = Supervised.build(config, INFO)
    message = rf"student\.name: {config.student.name} does not work with data\.image_size=16 \(.*\); choose a larger"
    with pytest.raises(ConfigError, match=message) as caught:
        dry.check_first_step(method, config, INFO)
    assert "\n" not in str(caught.value)


def test_batch_statistics_of_one_value_are_seen_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resnet18_cifar, .* and train\.batch_size=1 fails \(Expected"):
        run(tmp_path / "run", "student={name: resnet18_cifar}", "data.image_size=4", "train.batch_size=1")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("how", [RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError])
@pytest.mark.parametrize("small", [0, 10**9])
def test_a_method_that_fails_is_one_line_whatever_it_raises(
    how: type[Exception], small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry, "SMALL", small)
    monkeypatch.setattr(Broken, "how", how)
    message = r"method: the first step with student vit_tiny_patch16_224, .* fails \(the sizes\); change one of these"
    with pytest.raises(ConfigError, match=message) as caught:
        run(tmp_path / "run", build=Broken.build)
    assert isinstance(caught.value.__cause__, how)  # for --debug
    assert not list((tmp_path / "run").glob("*.json"))


def test_memory_that_runs_out_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "how", MemoryError)
    dry.check_first_step(Broken.build(tiny_config(), INFO), tiny_config(), INFO)


@pytest.mark.parametrize("small", [0, 10**9])
def test_the_method_and_the_generators_stay_as_they_are(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry, "SMALL", small)
    config = tiny_config("student={name: resnet8_tiny, kwargs: {drop_rate: 0.5}}")  # BatchNorm and dropout
    method = Supervised.build(config, INFO)
    before, state = copy.deepcopy(method.state_dict()), torch.get_rng_state()
    dry.check_first_step(method, config, INFO)
    assert same(method.state_dict(), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in method.modules())


class Config(RunConfig):
    teacher: TeacherConfig = fingerprinted(TeacherConfig(recipe="cnn"), help="a teacher")
    feature: str = fingerprinted("layer2", help="its feature")


class Taught(Supervised):
    """Reads a feature of its teacher."""

    @classmethod
    def build(cls, config: Any, info: DataInfo) -> Taught:
        method = super().build(config, info)
        method._feature, method._teacher = config.feature, load_teacher(config.teacher, info)
        return method

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        read_intermediates(self._teacher.model, self._teacher.adapt(batch.images), features=[self._feature])
        return super().forward(batch, clock)


def before_teachers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *settings: str) -> Config:
    """Ask for the teacher of a run, and return its config if it gets as far as its training."""
    monkeypatch.setattr("vitutor_core.data.build.open_source", lambda _: small_digits())
    monkeypatch.setattr(teachers, "train_teacher", lambda *_, **__: None)
    config = Config.from_mapping(tiny_config().model_dump(mode="json"), where="test").changed(settings)
    return teachers.with_teachers(config, "digits", tmp_path, method=f"{__name__}:Taught")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("feature=layer9",), r"no feature 'layer9'; did you mean"),
        (("feature=fc",), r"not every one of \['fc'\] is a"),
        (("runtime.device=mps",), r"runtime\.device: 'mps' is not a device"),
        (("student={name: inception_v3}",), r"student\.name: inception_v3 does not work with data\.image_size=16"),
        (("train.batch_size=500",), r"train\.batch_size: 500 is larger than an epoch"),
        (("teacher.recipe=cnnn",), r"teacher cnnn: .*did you mean 'cnn'"),
    ],
)
def test_what_cannot_work_is_said_before_a_teacher_is_trained(
    settings: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert before_teachers(monkeypatch, tmp_path).teacher.weights == str(tmp_path / "cnn")
    monkeypatch.setattr(teachers, "train_teacher", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(ConfigError, match=message):
        before_teachers(monkeypatch, tmp_path, *settings)
    assert not list(tmp_path.iterdir())


def test_nothing_is_tried_where_the_teachers_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cnn").mkdir()
    monkeypatch.setattr(preflight, "check_run", lambda *_: pytest.fail("tried"))
    monkeypatch.setattr(teachers, "trained_teacher", lambda *_, **__: tmp_path / "cnn")
    (tmp_path / "cnn" / "metrics.json").touch()
    assert before_teachers(monkeypatch, tmp_path).teacher.weights == str(tmp_path / "cnn")


def test_a_student_that_works_is_let_through() -> None:
    """Models of every kind that recipes use: what the dry pass refuses, nobody could train."""
    for name in ("resnet8_tiny", "rednet_tiny", "cvt_13", "t2t_vit_14", "deit_tiny_distilled_patch16_224"):
        config = tiny_config(f"student={{name: {name}}}", "data.image_size=64", "augment.mixup=0.2")
        method = Supervised.build(config, replace(INFO, image_size=64))
        assert isinstance(method.student, nn.Module)
        dry.check_first_step(method, config, replace(INFO, image_size=64))
