"""Stored logits are the teacher's, found again by whoever trains on the same batches and by nobody else."""

from __future__ import annotations

import json
import math
import os
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from conformance.suite import Crash, assert_equal_weights
from core.tests.photo_samples import write_photos
from core.tests.test_teacher import cnn, frozen
from core.tests.train_samples import before_update, crash, run, small_digits, tiny_config, weights
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data.types import DataInfo
from vitutor_core.distill import FrozenTeacher
from vitutor_core.distill.logits import decode, encode
from vitutor_core.distill.taught import expected_bytes
from vitutor_core.errors import ConfigError
from vitutor_core.paper import installed_paper
from vitutor_core.schema import CacheConfig
from vitutor_core.train.ahead import store_logits
from vitutor_core.train.method import StepOutput
from vitutor_core.train.supervised import Supervised

HEAVY_VIEWS = ("augment.flip=0.5", "augment.mixup=0.8", "augment.cutmix=1.0", "augment.random_erasing=0.5")


class Pupil(Supervised):
    """Matches a teacher's logits in the first two epochs."""

    change = 0.0

    @classmethod
    def build(cls, config, info: DataInfo):
        method = super().build(config, info)
        network = cnn()
        with torch.no_grad():
            network.fc.bias += cls.change
        method._teacher = frozen(network, mean=info.mean, std=info.std)
        method._facts = method._teacher.facts
        return method

    def on_epoch(self, clock):
        if clock.epoch >= 2:
            self._teacher = None
        return False

    def forward(self, batch, clock):
        if self._teacher is None:
            return super().forward(batch, clock)
        return StepOutput(F.mse_loss(self.student(batch.images), self._ask(batch)))

    def _ask(self, batch):
        return self._teacher(batch.images, logits=batch.taught.get("cnn")).logits

    def teachers(self):
        return {"cnn": self._facts}

    def logit_teachers(self):
        return {} if self._teacher is None else {"cnn": self._teacher}


class OtherPupil(Pupil):
    """Has another teacher."""

    change = 1.0


@pytest.fixture
def folder(tmp_path):
    return f"cache.folder={tmp_path / 'logits'}"


@pytest.fixture
def asked(monkeypatch):
    """The number of batches that a teacher's network was asked about, as a list of one."""
    count, call = [0], FrozenTeacher.__call__

    def counting(teacher, images, *, features=(), logits=None):
        count[0] += logits is None and torch.is_grad_enabled()  # not while the method is tried first
        return call(teacher, images, features=features, logits=logits)

    monkeypatch.setattr(FrozenTeacher, "__call__", counting)
    return count


def pupil(path, *settings, build=Pupil):
    return run(path, *settings, build=build.build)


def stored(tmp_path):
    return sorted((tmp_path / "logits").glob("*/*.safetensors"))


@pytest.mark.parametrize("views", [(), HEAVY_VIEWS, ("train.accumulate=2",)], ids=["plain", "mixed", "micro-batches"])
def test_a_run_is_bit_equal_with_the_teacher_online_stored_and_read(tmp_path, folder, asked, views):
    pupil(tmp_path / "online", *views)
    assert asked == [10 if "train.accumulate=2" not in views else 20]
    first = pupil(tmp_path / "first", folder, *views)
    asked[0] = 0
    second = pupil(tmp_path / "second", folder, *views)
    assert asked == [0]
    for name in ("first", "second"):
        assert_equal_weights(tmp_path / name, tmp_path / "online")
    assert first["stored_logits"] == {"epochs_read": 0, "epochs_written": 2, "epochs_computed": 0, "divergence": 0.0}
    assert second["stored_logits"] == {"epochs_read": 2, "epochs_written": 0, "epochs_computed": 0, "divergence": 0.0}


@pytest.mark.parametrize(
    "change",
    [
        "seed=1",
        "data.view_seed=1",
        "data.per_class=9",
        "data.subset_seed=1",
        "data.image_size=24",
        "augment.pad_crop=1",
        "augment.mixup=0.2",
        "train.batch_size=10",
        "train.epoch_length=full",
        "cache.dtype=fp16",
        "cache.top_k=3",
    ],
)
def test_other_batches_are_not_answered_from_here(tmp_path, folder, asked, change):
    pupil(tmp_path / "first", folder)
    asked[0] = 0
    pupil(tmp_path / "second", folder, change, "train.epochs=2")
    assert asked[0] > 0
    assert len({path.parent for path in stored(tmp_path)}) == 2


def test_another_teacher_is_not_answered_from_here(tmp_path, folder, asked):
    pupil(tmp_path / "first", folder)
    asked[0] = 0
    pupil(tmp_path / "second", folder, build=OtherPupil)
    assert asked == [10]


def test_seeds_of_weights_share_the_views_of_one_seed(tmp_path, folder, asked):
    one = pupil(tmp_path / "one", folder, "data.view_seed=7")
    asked[0] = 0
    other = pupil(tmp_path / "other", folder, "data.view_seed=7", "seed=1")
    assert asked == [0]
    assert one["fingerprint"] != other["fingerprint"]
    start, end = (weights(tmp_path / name)["head.weight"] for name in ("one", "other"))
    assert not torch.equal(start, end)


def test_longer_and_other_students_share_too(tmp_path, folder, asked):
    pupil(tmp_path / "one", folder)
    asked[0] = 0
    pupil(tmp_path / "other", folder, "train.epochs=4", "optim.lr=1e-3", "student.kwargs.embed_dim=32")
    assert asked == [0]


def test_a_killed_epoch_is_not_stored_and_the_run_goes_on_bit_equal(tmp_path, folder, asked, monkeypatch):
    pupil(tmp_path / "whole")
    with monkeypatch.context() as patch:
        before_update(patch, 8, crash)
        with pytest.raises(Crash):
            pupil(tmp_path / "killed", folder)
    assert [path.name for path in stored(tmp_path)] == ["epoch-00000.safetensors"]
    pupil(tmp_path / "killed", folder)
    assert_equal_weights(tmp_path / "killed", tmp_path / "whole")
    assert len(stored(tmp_path)) == 2


def test_what_killed_writers_left_is_removed_and_what_is_being_written_is_not(tmp_path, folder, asked):
    pupil(tmp_path / "first", folder)
    (first, second) = stored(tmp_path)
    first.unlink()
    old, new = (first.with_name(f".{first.name}.vitutor.tmp-{number}") for number in (1, 2))
    for partial in (old, new):
        partial.touch()
    os.utime(old, (0, 0))
    pupil(tmp_path / "second", folder)
    assert stored(tmp_path) == [first, second]
    assert not old.exists()
    assert new.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_computed_again(tmp_path, folder, asked, damage):
    pupil(tmp_path / "first", folder)
    path = stored(tmp_path)[0]
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-3] ^= 1
    path.write_bytes({"cut": content[:-100], "flipped": content, "empty": b""}[damage])
    asked[0] = 0
    pupil(tmp_path / "second", folder)
    assert asked == [5]
    assert_equal_weights(tmp_path / "second", tmp_path / "first")


@pytest.mark.parametrize("form", ["cache.dtype=fp16", "cache.top_k=2"])
def test_rounded_logits_teach_alike_at_first_and_later_and_say_how_far_they_are(tmp_path, folder, form):
    pupil(tmp_path / "exact", folder)
    first = pupil(tmp_path / "first", folder, form)
    second = pupil(tmp_path / "second", folder, form)
    assert_equal_weights(tmp_path / "first", tmp_path / "second")
    assert 0 < first["stored_logits"]["divergence"] == second["stored_logits"]["divergence"]


def test_the_largest_logits_are_exact_and_the_others_share_the_rest():
    logits = torch.tensor([[0.0, math.log(3), math.log(5), math.log(7)]])  # of 16: 1, 3, 5, 7
    found = decode(encode(logits, CacheConfig(folder="x", top_k=2)), 4)
    torch.testing.assert_close(found.softmax(1), torch.tensor([[2.0, 2.0, 5.0, 7.0]]) / 16)
    assert torch.equal(found[0, 2:], logits[0, 2:])
    assert torch.equal(decode(encode(logits, CacheConfig(folder="x", top_k=4)), 4), logits)


def test_the_cache_stays_within_its_bound(tmp_path, folder, asked):
    # An epoch has 100 images x 10 classes x 4 bytes, 4000 bytes; one of two is stored.
    result = pupil(tmp_path / "one", folder, "cache.max_gb=7e-6")
    assert result["stored_logits"]["epochs_written"] == 1
    assert result["stored_logits"]["epochs_computed"] == 1
    assert len(stored(tmp_path)) == 1
    assert expected_bytes(tiny_config(folder), 5, 1, 10) == 3 * 4000


def test_logits_stored_ahead_are_those_of_the_run(tmp_path, folder, asked):
    told = []
    with mock.patch("vitutor_core.data.build.open_source", return_value=small_digits()):
        facts = store_logits(
            tiny_config(folder), Pupil.build, starting=lambda *of: told.append(of), epoch_done=told.append
        )
    assert told == [(3, 1.2e-5), 0, 1]
    assert facts["epochs_written"] == 2
    asked[0] = 0
    pupil(tmp_path / "run", folder)
    assert asked == [0]


def test_nothing_to_store_is_said(folder):
    with (
        mock.patch("vitutor_core.data.build.open_source", return_value=small_digits()),
        pytest.raises(ConfigError, match="choose a row with a teacher"),
    ):
        store_logits(tiny_config(folder), Supervised.build, starting=lambda *_: None, epoch_done=lambda _: None)


def test_what_was_stored_explains_itself(tmp_path, folder):
    pupil(tmp_path / "one", folder)
    key = json.loads((stored(tmp_path)[0].parent / "key.json").read_text())
    assert key["view_seed"] == 0
    assert key["augment.pad_crop"] == 2
    assert key["train.batch_size"] == 20


def test_rounding_without_a_folder_is_a_mistake():
    with pytest.raises(ConfigError, match=r"set cache\.folder"):
        tiny_config("cache.top_k=2")


def test_the_command_takes_the_options_of_train(call, tmp_path, monkeypatch):
    """What is stored ahead must be of the very batches that `train` with the same options has."""
    photos = write_photos(tmp_path / "photos", train=6, val=2)
    seen, facts = [], {"epochs_written": 2, "epochs_read": 0, "epochs_computed": 0}
    monkeypatch.setattr("vitutor_core.cli.training.with_teachers", lambda config, *_, **__: config)
    monkeypatch.setattr("vitutor_core.train.ahead.store_logits", lambda config, *_, **__: seen.append(config) or facts)
    chosen = ("--scale", "own", "--source", f"folder:{photos}", "--seed", 3, "--set", "train.epochs=2")
    assert call(vitutor, "cache", "dearkd", *chosen)[0] == 0
    settings = (f"data.source=folder:{photos}", "train.epochs=2", "seed=3", "cache.folder=cache")
    assert seen == [installed_paper("dearkd").resolve("own", None, None, settings)]
