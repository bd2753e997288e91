"""What goes wrong while images are loaded is one line, never a hang, and leaves no process behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from core.tests.loader_samples import LOADERS, assert_same, builder, config, fake_source
from vitutor_core.data import build, stream
from vitutor_core.errors import DataError


@pytest.fixture
def built():
    yield from builder()


def fail_at(bad, failure):
    def read(index):
        if index == bad:
            failure()
        return Image.new("RGB", (16, 16))

    return read


def corrupt():
    raise DataError("/data/cat.jpg: cannot read the image")


def hang():
    time.sleep(600)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def failing(monkeypatch, built):
    def make(failure, **settings):
        source = fake_source([(16, 16)] * 40, read=fail_at(21, failure))
        monkeypatch.setattr(build, "open_source", lambda _config: source)
        monkeypatch.setattr(stream, "_LOOK_S", 0.5)
        return built(config(batch_size=2, data={"per_class": None}, **settings))

    return make


@pytest.mark.parametrize(("loader", "workers"), LOADERS)
def test_a_corrupt_image_is_one_line(failing, loader, workers):
    with pytest.raises(DataError) as error:
        list(failing(corrupt, loader=loader, workers=workers).train.epoch(0))
    assert str(error.value) == "/data/cat.jpg: cannot read the image"


@pytest.mark.parametrize("part", ["train", "evaluation"])
def test_a_worker_that_dies(failing, part):
    data = failing(die, loader="streamed", workers=2)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"a data worker died \(PID \d+: killed, most likely because memory ran out\)"):
        list(data.train.epoch(0) if part == "train" else data.evaluation)
    assert time.monotonic() - started < 20
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_between_two_batches(failing):
    """It must not show in the middle of a training step, but when the next batch is asked for."""
    data = failing(lambda: None, loader="streamed", workers=2)
    batches = data.train.epoch(0)
    next(batches)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    with pytest.raises(DataError, match=f"PID {victim.pid}: killed"):
        list(batches)


def test_a_slow_image_is_waited_for(failing):
    """Also where it takes longer than the time between two looks at the workers."""
    data = failing(lambda: time.sleep(1.6), loader="streamed", workers=2)
    assert len(list(data.train.epoch(0))) == 20


def test_a_worker_that_hangs(failing):
    data = failing(hang, loader="streamed", workers=2, timeout=1)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"no batch from the data workers \(PID \d+, \d+\) within .* = 1 s"):
        list(data.train.epoch(0))
    assert time.monotonic() - started < 20
    assert multiprocessing.active_children() == []


def test_workers_ignore_the_signals_of_the_group(built):
    data = built(config(loader="streamed", workers=2))
    batches = data.train.epoch(0)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == data.train.steps_per_epoch - 1
    assert multiprocessing.active_children() == workers


def test_an_epoch_can_be_left_and_another_begun(built):
    data, reference = (built(config(loader="streamed", workers=n, pad_crop=2)) for n in (2, 0))
    left = data.train.epoch(0)
    next(left)
    assert_same(list(data.train.epoch(1)), list(reference.train.epoch(1)))
    with pytest.raises(RuntimeError, match="began another list"):
        next(left)
    workers = multiprocessing.active_children()
    left = data.train.epoch(2)
    next(left)
    assert multiprocessing.active_children() == workers
    data.train.close()
    assert multiprocessing.active_children() == []


def test_a_process_that_forgets_to_close_can_exit():
    script = """
import sys, torch
from vitutor_core.data.build import build_data
from vitutor_core.schema import RunConfig

config = RunConfig.model_validate_json(sys.argv[1])
data = build_data(config, device=torch.device("cpu"))
batches, evaluation = data.train.epoch(0), iter(data.evaluation)
next(batches), next(evaluation)
"""
    settings = config(loader="streamed", workers=2).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, settings], timeout=60, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_childs_signal_handler_is_restored(built):
    before = signal.getsignal(signal.SIGCHLD)
    data = built(config(loader="streamed", workers=1))
    for _ in data.train.epoch(0):
        assert signal.getsignal(signal.SIGCHLD) == before
    list(data.evaluation)
    assert signal.getsignal(signal.SIGCHLD) == before
