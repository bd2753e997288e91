from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from core.tests.detection_samples import few_scenes
from core.tests.detection_samples import run as run_detector
from core.tests.train_samples import (
    STEPS_PER_EPOCH,
    TINY,
    after_each_update,
    before_update,
    crash,
    run,
    small_digits,
    steps_of,
)
from vitutor_core.baseline import paper_of
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.errors import CheckpointError, ConfigError, InterruptedRun, NonFiniteError
from vitutor_core.jobs.replay import replay_run
from vitutor_core.paper import load
from vitutor_core.report.replay import replay_lines
from vitutor_core.runs import RunDir
from vitutor_core.schema import RunConfig
from vitutor_core.train.meter import Meter
from vitutor_core.train.origin import Origin
from vitutor_core.train.replay import gradient_norms, replay
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised
from vitutor_core.train.update import Updater

CLIPPED = ("optim.clip_norm=0.1", "optim.weight_decay=0.1")


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr("vitutor_core.data.build.open_source", lambda _: small_digits())


@pytest.fixture
def losses(monkeypatch):
    """The loss of every micro-batch of training, as the meter got it, and the gradient norms before clipping."""
    seen: dict[str, list] = {"loss": [], "norms": []}
    step = Updater.step

    def watched(updater):
        seen["norms"].append(gradient_norms(updater.method))
        step(updater)

    add = Meter.add

    def noted(meter, output, images):
        seen["loss"].append(float(output.loss.detach()))
        add(meter, output, images)

    with monkeypatch.context() as patch:
        patch.setattr(Updater, "step", watched)
        patch.setattr(Meter, "add", noted)
        yield seen


def again(out, step, *settings, whole_epoch=False):
    origin = Origin.read(out)
    config = RunConfig.from_mapping(origin.config, where="run").changed(settings)
    return replay(origin, config, Supervised.build, step, whole_epoch=whole_epoch)


@pytest.mark.parametrize("kept", ["checkpoints", "nothing"])
def test_every_step_of_a_run_is_the_same_again(tmp_path, losses, kept):
    run(tmp_path / "run", *CLIPPED)
    trained = {name: list(values) for name, values in losses.items()}
    if kept == "nothing":  # as of a run whose work folder is gone
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        (tmp_path / "run" / "run.json").unlink()
    for step in (0, 4, 5, 7, 14):
        seen = again(tmp_path / "run", step)
        assert seen.step == step
        assert seen.terms == {"train_loss": trained["loss"][step]}
        assert seen.norms == trained["norms"][step]
        assert seen.norms["all"] == pytest.approx(sum(norm**2 for n, norm in seen.norms.items() if n != "all") ** 0.5)
        nearest = max([at for at in steps_of(tmp_path / "run") if at <= step], default=0) if kept != "nothing" else 0
        assert seen.start == nearest


def test_the_means_of_the_epoch_are_those_of_the_curves(tmp_path):
    run(tmp_path / "run")
    for step, whole_epoch in ((6, True), (9, False)):  # the last step of an epoch costs nothing more
        seen = again(tmp_path / "run", step, whole_epoch=whole_epoch)
        assert seen.repeated["train_loss"] == seen.recorded["train_loss"]
        assert any(line.startswith("train_loss") and line.endswith("the same") for line in replay_lines(seen, step))
    assert again(tmp_path / "run", 6).repeated == {}
    path = RunDir(tmp_path / "run").curves
    path.write_text(path.read_text().replace(repr(seen.recorded["train_loss"]), repr(seen.recorded["train_loss"] - 1)))
    seen = again(tmp_path / "run", 9)
    assert any(line.endswith("differs by 1") for line in replay_lines(seen, 9))


def test_what_is_no_number_in_both_is_the_same(tmp_path):
    run(tmp_path / "run")
    nan = {"train_loss": math.nan}
    seen = replace(again(tmp_path / "run", 9), terms={"train_loss": 1.0}, recorded=nan, repeated=nan)
    assert any(line.endswith("the same") for line in replay_lines(seen, 9))


def test_a_killed_run_and_one_of_accumulated_micro_batches(tmp_path, monkeypatch, losses):
    with monkeypatch.context() as patch:
        before_update(patch, 12, crash)
        with pytest.raises(BaseException):  # noqa: B017, PT011  # as of a process that is killed
            run(tmp_path / "run", "train.accumulate=2", "augment.mixup=0.2", "train.ema_decay=0.9")
    trained = losses["loss"][:]
    assert not (tmp_path / "run" / "metrics.json").exists()
    seen = again(tmp_path / "run", 11)
    assert seen.start == 10
    assert seen.terms["train_loss"] == pytest.approx(sum(trained[22:24]) / 2, abs=0)
    assert len(seen.images) == len(seen.names) == 20


def test_a_nan_is_found_at_its_step_and_named(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(NonFiniteError, match=r"vitutor replay .*run --step \d+ shows the step") as caught:
        run(out, "optim.name=momentum", "optim.lr=1e18", "optim.schedule=constant")
    (report,) = (out / "crash").iterdir()
    step = json.loads(report.read_text())["step"]
    assert f"--step {step} " in str(caught.value)
    assert 0 < step < STEPS_PER_EPOCH  # before the first checkpoint
    for asked in (step, 14):
        seen = again(out, asked)
        assert seen.step == step
        assert "train_loss" in seen.not_finite
        assert str(seen.crash) == json.loads(report.read_text())["last_losses"][-1]
    assert again(out, step - 1).not_finite == []
    run(out)  # the folder is free for another run
    assert again(out, step).not_finite == []


def test_a_nan_that_is_noticed_after_the_last_step_is_replayed_from_there(tmp_path, monkeypatch):
    def noticed(updater):
        if updater.state.step == 15:  # as a GPU does, when the step has been counted
            raise NonFiniteError("the loss became NaN")

    after_each_update(monkeypatch, noticed)
    with pytest.raises(NonFiniteError, match=r"--step 14 shows the step"):
        run(tmp_path / "run")


def test_another_config_other_images_and_other_checkpoints_are_refused(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(out)
    assert again(out, 3, "runtime.eval_batch_size=7").step == 3
    with pytest.raises(ConfigError, match=r"optim\.lr: 0\.01 -> 0\.5.*replayed as it was made"):
        again(out, 3, "optim.lr=0.5")
    with pytest.raises(ConfigError, match="has 15 steps"):
        again(out, 15)
    described = json.loads((out / "run.json").read_text())
    described["identity"]["config"]["optim.lr"] = described["sessions"][-1]["config"]["optim"]["lr"] = 0.5
    (out / "run.json").write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"step-00000010: .*optim\.lr"):
        again(out, 12)
    (out / "run.json").unlink()
    with pytest.raises(ConfigError, match="not those of then"):
        again(out, 3, "optim.lr=0.5")
    with pytest.raises(CheckpointError, match="no run"):
        Origin.read(tmp_path)


def test_sums_are_made_by_as_many_threads_as_then(tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(out)
    described = json.loads((out / "run.json").read_text())
    assert described["sessions"][-1]["threads"] == torch.get_num_threads()
    described["sessions"][-1]["threads"] = 3
    (out / "run.json").write_text(json.dumps(described))
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert "threads: 3 -> " in "".join(again(out, 0).notes)  # the stand-in sets nothing
    assert asked == [3]

    (out / "run.json").unlink()  # as published by a version that did not record them
    record = json.loads((out / "metrics.json").read_text())
    (out / "metrics.json").write_text(json.dumps(record | {"threads": None}))
    again(out, 0, "runtime.threads=2")
    assert asked == [3, 2]


@pytest.mark.parametrize("package", ["vitutor_core", "vitutor_core+drloc"])
def test_the_lines_of_core_itself_are_replayed_by_the_command(tmp_path, package):
    if "+" in package:
        pytest.importorskip("drloc")
    paper = paper_of(package)
    config = load(paper.config).from_mapping(TINY, where="tiny")
    train(config, load(paper.method).build, label=RunLabel(package, "x", "digits", "x"), out=tmp_path / "run")
    arguments = ["replay", str(tmp_path / "run"), "--step", "14"]
    done = CliRunner().invoke(vitutor, arguments, catch_exceptions=False)
    assert (done.exit_code, "the same" in done.output) == (0, True)


def test_a_detector_is_replayed_by_the_command(tmp_path):
    few, said = few_scenes(), ""
    with mock.patch("vitutor_core.data.detection.load.open_annotated", return_value=few):
        run_detector(tmp_path / "run")
        for step in ("0", "1"):
            arguments = ["replay", str(tmp_path / "run"), "--step", step]
            said += CliRunner().invoke(vitutor, arguments, catch_exceptions=False).output
    assert "the same" in said  # of the epoch, which ends with step 1
    assert sorted(line.strip() for line in said.splitlines() if "image " in line) == list(
        map(few.train.images.where, range(8))
    )


def test_stopping_a_replay_by_several_processes_saves_nothing_and_does_not_say_so(tmp_path):
    run(tmp_path)
    described = json.loads((tmp_path / "run.json").read_text())
    session = described["sessions"][-1]
    (tmp_path / "run.json").write_text(json.dumps(described | {"sessions": [session | {"processes": 2}]}))
    stopped = InterruptedRun("stopped and saved; run it again to go on", 15)
    replaced = mock.patch("vitutor_core.jobs.replay.run_jobs", side_effect=stopped)
    with replaced, pytest.raises(InterruptedRun, match=r"^stopped$") as caught:
        replay_run(tmp_path, 3, whole_epoch=False, images=None, settings=[])
    assert caught.value.exit_code == 143


def test_what_cannot_be_replayed_is_said_in_a_line(tmp_path):
    out = tmp_path / "run"
    run(out)
    described = json.loads((out / "run.json").read_text())
    session = described["sessions"][-1]
    (out / "run.json").write_text(json.dumps(described | {"sessions": [session | {"processes": 2}]}))
    with pytest.raises(ConfigError, match="the number of processes was 2, and is 1; a step"):
        again(out, 3)
    (out / "run.json").write_text(json.dumps(described | {"sessions": [session, session | {"processes": 2}]}))
    with pytest.raises(ConfigError, match="by 1 and by 2 processes"):
        again(out, 3)
    (out / "run.json").write_text(json.dumps(described | {"sessions": [session | {"versions": {}}]}))
    assert "may differ" in "".join(again(out, 3).notes)
    del session["config"]
    (out / "run.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="lacks 'config'"):
        Origin.read(out)


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    out = tmp_path / "run"
    run(out)
    (out / "checkpoints" / "step-00000010" / "method.safetensors").write_bytes(b"")
    assert again(out, 12).start in {0, 5}
    assert not again(out, 14).notes


def test_the_command_names_the_images_and_draws_them_as_the_model_saw_them(tmp_path):
    out = tmp_path / "run"
    run(out, "augment.pad_crop=0")
    before = sorted(path for path in out.rglob("*"))
    arguments = ["replay", str(out), "--step", "6", "--epoch", "--images", str(tmp_path / "batch")]
    done = CliRunner().invoke(vitutor, arguments, catch_exceptions=False)
    assert "step 6 of 15, epoch 1" in done.output
    assert "the same" in done.output
    assert "... and 12 more" in done.output
    assert sorted(path for path in out.rglob("*")) == before
    rows = (tmp_path / "batch" / "step-00000006.csv").read_text().splitlines()[1:]
    assert len(rows) == 20
    sheet = np.asarray(Image.open(tmp_path / "batch" / "step-00000006.png"))
    assert sheet.shape == (4 * 17 + 1, 5 * 17 + 1, 3)
    source, seen = small_digits(), again(out, 6)
    for position in (0, 7, 19):  # without augmentation, the model sees the image itself
        _, name, where = rows[position].split(",", 2)
        index = next(i for i in range(len(source.train.labels)) if source.train.where(i) == where.strip('"'))
        assert source.class_names[source.train.labels[index]] == name
        pixels = torch.from_numpy(np.asarray(source.train.read(index).resize((16, 16), 2)).copy()).permute(2, 0, 1)
        torch.testing.assert_close(seen.images[position], pixels / 255, atol=1e-5, rtol=0)
