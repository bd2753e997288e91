"""What a run reports while it trains: off by default, found by entry point, and no failure of it ends a run."""

from __future__ import annotations

import contextlib
import csv
import json
import sqlite3
import sys
import tomllib
from pathlib import Path

import pytest

from core.tests.train_samples import (
    STEPS_PER_EPOCH,
    TOTAL_STEPS,
    Crash,
    before_update,
    crash,
    curves,
    same,
    tiny_config,
    weights,
)
from core.tests.train_samples import run as train_tiny
from vitutor_core.errors import ConfigError
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised
from vitutor_core.train.track import GROUP, Facts, Tracking

TRACKIO_METRICS = "SELECT run_name, step, metrics FROM metrics ORDER BY id"
FAKES = """
opened = []


class Recorder:
    def __init__(self, facts):
        self.facts, self.lines, self.closed = facts, [], 0
        opened.append(self)

    def log(self, step, values):
        self.lines.append((step, values))

    def close(self):
        self.closed += 1


class Failing:
    def __init__(self, facts):
        self.calls = 0
        opened.append(self)

    def log(self, step, values):
        self.calls += 1
        raise RuntimeError("no route to the service\\nand much more")

    def close(self):
        raise RuntimeError("it was given up")


class Unopened(Failing):
    def __init__(self, facts):
        raise ConnectionError("wrong key")


class Unclosed(Recorder):
    def close(self):
        raise TimeoutError


class Absent:
    package = "a_package_that_nobody_has"
"""


@pytest.fixture(autouse=True)
def trackers(tmp_path, monkeypatch):
    """Install a distribution with core's trackers, as its pyproject.toml has them, and fakes; return the fakes."""
    folder = tmp_path / "site"
    info = folder / "fakes-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fake_trackers.py").write_text(FAKES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 1.0\n")
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    own = pyproject["project"]["entry-points"][GROUP]
    fakes = {
        name.lower(): f"fake_trackers:{name}" for name in ("Recorder", "Failing", "Unopened", "Unclosed", "Absent")
    }
    lines = [f"{name} = {where}" for name, where in (own | fakes).items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))
    import fake_trackers

    yield fake_trackers
    sys.modules.pop("fake_trackers", None)


def test_a_tracker_gets_losses_at_each_interval_and_metrics_of_each_epoch(tmp_path, trackers):
    train_tiny(tmp_path / "run", "runtime.track=recorder", "runtime.log_every_steps=5")
    (tracker,) = trackers.opened
    assert tracker.closed == 1
    assert tracker.facts.name == "supervised test, seed 0"
    assert tracker.facts.folder == tmp_path / "run" / "tracking"
    assert tracker.facts.config["optim.lr"] == 1e-2
    intervals = [(step, values) for step, values in tracker.lines if values.keys() == {"step_loss", "lr"}]
    epochs = [(step, values) for step, values in tracker.lines if "epoch" in values]
    assert [step for step, _ in intervals] == [step for step, _ in epochs] == [5, 10, 15]
    for line, (_, values) in zip(curves(tmp_path / "run"), epochs, strict=True):
        assert values["top1"] == float(line["top1"])
        assert values["train_loss"] == pytest.approx(float(line["train_loss"]))
    assert all(0 < values["lr"] <= 1e-2 for _, values in intervals)


def test_it_is_off_by_default_and_changes_nothing(tmp_path, trackers):
    assert tiny_config().runtime.track == ()
    assert tiny_config("runtime.track=recorder").fingerprint() == tiny_config().fingerprint()
    train_tiny(tmp_path / "plain")
    assert trackers.opened == []
    assert not (tmp_path / "plain" / "tracking").exists()
    train_tiny(tmp_path / "tracked", "runtime.track=recorder")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "tracked"))


@pytest.mark.parametrize("kind", ["failing", "unopened", "unclosed"])
def test_one_that_fails_is_said_once_and_ends_nothing(kind, tmp_path, trackers):
    with pytest.warns(UserWarning, match="the run goes on without it") as warned:
        record = train_tiny(tmp_path / "run", f"runtime.track=recorder, {kind}")
    reasons = {"failing": "no route to the service", "unopened": "wrong key", "unclosed": "TimeoutError"}
    assert [str(one.message) for one in warned] == [f"tracker {kind}: {reasons[kind]}; the run goes on without it"]
    assert record["updates"] == TOTAL_STEPS
    assert trackers.opened[0].closed == 1
    if kind == "failing":
        assert trackers.opened[1].calls == 1


def test_a_resumed_run_continues_its_axis_and_a_failed_one_is_closed(tmp_path, trackers, monkeypatch):
    before_update(monkeypatch, 7, crash)
    with pytest.raises(Crash):
        train_tiny(tmp_path / "run", "runtime.track=recorder")
    assert trackers.opened[0].closed == 1
    train_tiny(tmp_path / "run", "runtime.track=recorder")
    first, second = trackers.opened
    assert first.lines[-1][0] == 6
    assert second.facts.first_step == STEPS_PER_EPOCH
    assert second.lines[0][0] == 6
    assert second.lines[-1][0] == TOTAL_STEPS


def test_a_function_of_the_caller_gets_the_same(tmp_path, trackers):
    seen = []

    def stumble(step, values):
        raise KeyError("mine")

    config = tiny_config("runtime.track=recorder", "train.epochs=1")
    label = RunLabel("supervised", "test", "digits", "test")
    functions = [lambda step, values: seen.append((step, values)), stumble]
    with pytest.warns(UserWarning, match="tracker callback 2: 'mine'; the run goes on without it"):
        train(config, Supervised.build, label=label, out=tmp_path / "run", callbacks=functions)
    assert seen == trackers.opened[0].lines


def test_only_the_first_process_reports(tmp_path, trackers):
    tracking = Tracking.of(["recorder"])
    tracking.start(Facts(tmp_path, "x", {}, 0), enabled=False)
    tracking.log(1, {"loss": 1.0})
    assert trackers.opened == []


def test_what_is_not_there_is_said_before_the_run(tmp_path):
    for name, part in (
        ("recoder", "no tracker 'recoder' is installed; did you mean 'recorder'?"),
        ("absent", "absent needs the package a_package_that_nobody_has; pip install a_package_that_nobody_has"),
    ):
        with pytest.raises(ConfigError, match=f"^runtime.track: {part}".replace("?", r"\?")):
            train_tiny(tmp_path / "run", f"runtime.track={name}")
    assert not (tmp_path / "run").exists()


def test_tensorboard_reads_the_events_of_a_run_that_was_killed_and_resumed(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard' of vitutor-core")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    before_update(monkeypatch, 9, crash)  # what came after the checkpoint of step 5 was written is trained again
    settings = ("runtime.track=tensorboard", "runtime.log_every_steps=1")
    with pytest.raises(Crash):
        train_tiny(tmp_path / "run", *settings)
    train_tiny(tmp_path / "run", *settings)
    events = EventAccumulator(str(tmp_path / "run" / "tracking" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("step_loss")] == list(range(1, TOTAL_STEPS + 1))
    with (tmp_path / "run" / "curves.csv").open(newline="") as file:
        found = [float(line["top1"]) for line in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("top1")] == pytest.approx(found)


def test_trackio_has_the_losses_at_their_updates_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # which it reads when it is imported
    pytest.importorskip("trackio", reason="needs the extra 'trackio' of vitutor-core")
    before_update(monkeypatch, 9, crash)
    settings = ("runtime.track=trackio", "runtime.log_every_steps=1")
    with pytest.raises(Crash):
        train_tiny(tmp_path / "run", *settings)
    train_tiny(tmp_path / "run", *settings)
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "vitutor.db")) as database:
        found = [(name, step, json.loads(text)) for name, step, text in database.execute(TRACKIO_METRICS)]
    assert len({name for name, _, _ in found}) == 1
    losses = {step: values["step_loss"] for _, step, values in found if "step_loss" in values}
    assert sorted(losses) == list(range(1, TOTAL_STEPS + 1))
    tops = [(step, values["top1"]) for _, step, values in found if "top1" in values]
    assert tops == [(int(line["step"]), float(line["top1"])) for line in curves(tmp_path / "run")]
