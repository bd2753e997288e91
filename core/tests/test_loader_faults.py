"""What goes wrong while images are loaded is one line, never a hang, and leaves no process behind."""

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from conformance import forked
from core.tests.loader_samples import LOADERS, assert_same, builder, config, fake_source
from core.tests.photo_samples import write_photos
from vitutor_core.data import build
from vitutor_core.data.loaders import workers as pool
from vitutor_core.data.sources import images
from vitutor_core.data.sources.folder import folder_source
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


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
        monkeypatch.setattr(pool, "_LOOK_S", 0.5)
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


def test_workers_that_are_stopped_as_processes(failing):
    """By SIGSTOP, as by a debugger or a batch system: they live, and never answer."""
    data = failing(lambda: None, loader="streamed", workers=2, timeout=1)
    batches = data.train.epoch(0)
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"within runtime.worker_timeout_s = 1 s: reading hangs, or they were stopped"):
        list(batches)
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


STOPPED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from core.tests.train_samples import run
from vitutor_core.terminal import exit_after
from vitutor_core.data.loaders import workers as pool
from vitutor_core.train.update import Updater
update, wait, stopped = Updater.update, pool.wait, []
def stopping(updater, micro_batches, clock):
    update(updater, micro_batches, clock)
    if clock.step == 6:
        stopped.extend(multiprocessing.active_children())
        for worker in stopped:
            os.kill(worker.pid, signal.SIGSTOP)
def waiting(futures, timeout):
    if stopped and not futures[0].done():
        print("waiting", flush=True)
    return wait(futures, timeout)
Updater.update, pool.wait = stopping, waiting
settings = ["data.loader=streamed", "runtime.workers=2", "data.per_class=80", *sys.argv[2:]]
exit_after(lambda: run(Path(sys.argv[1]), *settings) and 0)
"""


def test_sigterm_while_the_workers_are_stopped(tmp_path):
    """The loop does not wait for them until their time is up: it saves and ends."""
    command = [forked.python(), "-c", STOPPED, str(tmp_path / "run"), "runtime.worker_timeout_s=300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "waiting\n"
        process.terminate()
        try:
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in errors
    (line,) = re.findall("error: .*", errors)
    (step,) = re.findall(r"^error: stopped at step (\d+); run it again to go on", line)
    assert process.returncode == 143
    assert (tmp_path / "run" / "checkpoints" / f"step-{int(step):08d}" / "manifest.json").exists()


def test_workers_end_with_a_main_process_that_is_killed():
    script = """
import multiprocessing, os, signal, sys, torch
from vitutor_core.data.build import build_data
from vitutor_core.schema import RunConfig

data = build_data(RunConfig.model_validate_json(sys.argv[1]), device=torch.device("cpu"))
batches = data.train.epoch(0)
next(batches)
print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    settings = config(loader="streamed", workers=2).model_dump_json()
    command = [forked.python(), "-c", script, settings]
    # Not its pipe of errors, which orphans would hold open.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        workers = process.stdout.readline().split()
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [worker for worker in workers if is_running(worker)]
    for worker in left:
        os.kill(int(worker), signal.SIGKILL)
    assert not left


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


FEW = """
import os, resource, sys
from pathlib import Path
from core.tests.train_samples import run
from vitutor_core.terminal import exit_after
limit = int(sys.argv[2]) + len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
settings = "data.loader=streamed", "runtime.workers=2", "train.epochs=1"
exit_after(lambda: run(Path(sys.argv[1]), *settings) and 0)
"""


@pytest.mark.parametrize("free", [0, 6, 12])
def test_few_file_descriptors_are_one_line(tmp_path, free):
    """Whether they run out for the pool, one of its workers, or the second pool."""
    done = forked.run(FEW, tmp_path / "run", free)
    assert done.returncode == 6
    assert done.stderr.splitlines()[-1] == (
        "error: too many open files; raise the limit (ulimit -n 1024), or lower runtime.workers"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_open_files_are_not_blamed_on_an_image(built, tmp_path, monkeypatch, workers):
    """Whoever opens it, the limit is the process's."""
    write_photos(tmp_path, train=4, val=2)
    source = folder_source(tmp_path, DataConfig(image_size=16))
    monkeypatch.setattr(build, "open_source", lambda _config: source)
    opener = Image.open
    monkeypatch.setattr(Image, "open", lambda *_, **__: opener(exhausted()))
    for data in builder():
        with pytest.raises(OSError, match="Too many open files"):
            list(
                data(config(loader="streamed", workers=workers, batch_size=2, data={"per_class": None})).train.epoch(0)
            )


def exhausted():
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_too_many_open_files_are_not_blamed_on_a_folder(tmp_path, monkeypatch):
    write_photos(tmp_path, train=4, val=2)
    for module, name in ((os, "scandir"), (images.Image, "open")):
        (tmp_path / "train" / "sky" / "odd.abc").write_bytes(b"?")
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_, **__: exhausted())
            with pytest.raises(OSError, match="Too many open files"):
                folder_source(tmp_path, DataConfig(image_size=16))
