from __future__ import annotations

import os
import signal

import pytest

from core.tests.train_samples import (
    STEPS_PER_EPOCH,
    assert_same_run,
    before_update,
    run,
    steps_of,
)
from vitutor_core.errors import InterruptedRun
from vitutor_core.train import checkpoint, loop, signals
from vitutor_core.train.update import Updater


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def signal_during(patch, moment, number):
    """Send a signal once: before the update of step ``moment``, or inside the evaluation or the save."""
    if isinstance(moment, int):
        before_update(patch, moment, lambda: send(number))
        return
    module, name = {"evaluation": (loop, "measure"), "save": (checkpoint, "_write_manifest")}[moment]
    original = getattr(module, name)
    pending = [number]

    def interrupted(*arguments, **options):
        if pending:
            send(pending.pop())
        return original(*arguments, **options)

    patch.setattr(module, name, interrupted)


@pytest.mark.parametrize(
    ("moment", "number", "saved"),
    [
        (2, signal.SIGTERM, [3]),
        (2, signal.SIGINT, [3]),
        (2, signal.SIGUSR1, [3]),
        (STEPS_PER_EPOCH - 1, signal.SIGTERM, [5]),
        ("evaluation", signal.SIGTERM, [5]),
        ("save", signal.SIGTERM, [5, 6]),
    ],
)
def test_a_signal_saves_once_and_the_same_command_goes_on(tmp_path, monkeypatch, whole, moment, number, saved):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        signal_during(patch, moment, number)
        with pytest.raises(InterruptedRun, match="run it again to go on") as caught:
            run(out)
    assert caught.value.exit_code == 128 + number
    assert steps_of(out) == saved
    assert not (out / "metrics.json").exists()
    run(out)
    assert_same_run(out, whole)


def test_a_stop_file_is_a_signal(tmp_path, monkeypatch, whole):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_update(patch, 2, (out / "STOP").touch)
        with pytest.raises(InterruptedRun) as caught:
            run(out)
    assert caught.value.exit_code == 143
    assert steps_of(out) == [4]  # looked for where the losses are read
    assert not (out / "STOP").exists()
    run(out)
    assert_same_run(out, whole)


def test_a_signal_in_the_very_last_batch_lets_the_run_end(tmp_path, monkeypatch, whole):
    with monkeypatch.context() as patch:
        before_update(patch, 3 * STEPS_PER_EPOCH - 1, send)
        run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_second_signal_does_not_wait_for_the_save(tmp_path, monkeypatch):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(signals.os, "_exit", leave)
    before_update(monkeypatch, 2, lambda: (send(), send()))
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "run")
    assert caught.value.code == 143
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_signal_handlers_are_restored(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    run(tmp_path / "run", "train.epochs=1")
    assert [signal.getsignal(number) for number in numbers] == before


def test_no_sample_is_seen_twice_or_skipped(tmp_path, monkeypatch):
    seen = []
    update = Updater.update

    def watched(updater, micro_batches, clock):
        update(updater, micro_batches, clock)
        seen.append((clock.step, [batch.indices.tolist() for batch in micro_batches]))

    monkeypatch.setattr(Updater, "update", watched)
    run(tmp_path / "whole")
    uninterrupted, seen[:] = list(seen), []
    for step in (2, STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH + 3):
        with monkeypatch.context() as patch:
            before_update(patch, step, send)
            with pytest.raises(InterruptedRun):
                run(tmp_path / "run")
    run(tmp_path / "run")
    assert seen == uninterrupted
    epoch = [index for _, (indices,) in seen[:STEPS_PER_EPOCH] for index in indices]
    assert sorted(epoch) == list(range(100))
