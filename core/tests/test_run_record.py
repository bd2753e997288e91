"""What the record of a run says of the processes that trained it, one after another."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from conformance.suite import Crash
from core.tests.train_samples import STEPS_PER_EPOCH, TOTAL_STEPS, after_each_update, before_update, crash, run
from vitutor_core.runs import RunRecord
from vitutor_core.train import checkpoint, session


def test_the_time_of_a_run_is_that_of_all_processes_that_trained_it(tmp_path, monkeypatch):
    """Ten seconds an update, of which the kill undoes those after the checkpoint."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def passes(_updater):
        nonlocal now
        now += 10.0

    after_each_update(monkeypatch, passes)
    with monkeypatch.context() as patch:
        before_update(patch, STEPS_PER_EPOCH + 2, crash)
        with pytest.raises(Crash):
            run(tmp_path / "run")
    assert run(tmp_path / "run")["seconds"] == TOTAL_STEPS * 10.0
    (tmp_path / "run" / "metrics.json").unlink()
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda folder: replace(found := read(folder), state=_without(found.state)))
    assert run(tmp_path / "run")["seconds"] == 0.0  # as of a checkpoint of an older version


def _without(state):
    return {name: value for name, value in state.items() if name != "seconds"}


def test_a_run_names_the_commits_it_was_trained_with(tmp_path, monkeypatch):
    """The checkout moves on before the run is resumed, and once more while it is."""
    commit = {"commit": "", "dirty": False}
    monkeypatch.setattr(session, "git_state", commit.copy)
    after_each_update(monkeypatch, lambda _: commit.update(commit="later"))
    for name, killed_at in (("lost", 1), ("first", STEPS_PER_EPOCH + 1), ("second", 2 * STEPS_PER_EPOCH + 1)):
        commit.update(commit=name)  # the first is killed before a checkpoint
        with monkeypatch.context() as patch:
            before_update(patch, killed_at, crash)
            with pytest.raises(Crash):
                run(tmp_path / "run")
    commit.update(commit="first")
    found = RunRecord.of(**run(tmp_path / "run"))
    assert [process.git.commit for process in found.made_with] == ["first", "second"]
    assert found.commits == "first, before that second"
