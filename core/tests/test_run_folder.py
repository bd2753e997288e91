from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from conformance import forked
from conformance.suite import wait_for
from core.tests.train_samples import full_disk
from vitutor_core.errors import BusyError, CheckpointError, ConfigError, ResourceError
from vitutor_core.train import checkpoint, run_folder
from vitutor_core.train.run_folder import RunFolder
from vitutor_core.train.signals import StopRequest

IDENTITY = {"method": "m", "data": "d", "teachers": {}, "config": {"optim.lr": 0.1, "seed": 0}}

HOLDER = """
import signal, sys
from pathlib import Path
from vitutor_core.train.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])) as run:
    run.claim({"method": "m", "config": {}}, {})
    (run.path / "held").touch()
    signal.pause()
"""


def test_a_second_process_is_refused_with_the_holder(tmp_path):
    with forked.Forked(HOLDER, tmp_path / "r") as holder:
        wait_for(tmp_path / "r" / "held", holder)
        started = time.monotonic()
        with pytest.raises(BusyError, match=rf"process {holder.pid} on .* since 20"):
            RunFolder(tmp_path / "r")
        assert time.monotonic() - started < run_folder._LOCK_WAIT_S
        holder.kill()
        holder.wait()
    with RunFolder(tmp_path / "r"):  # the lock of a dead process is taken over
        pass


def test_a_lock_inherited_by_a_dead_runs_worker_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_LOCK_WAIT_S", 0.5)
    folder = RunFolder(tmp_path / "r")
    (tmp_path / "r" / ".lock").write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename, "since": "x"}))
    started = time.monotonic()
    with pytest.raises(BusyError):
        RunFolder(tmp_path / "r")
    assert time.monotonic() - started >= 0.5
    folder.__exit__(None, None, None)


def begin(run, details):
    """Claim a folder and save a checkpoint into it."""
    run.claim(IDENTITY, details)
    checkpoint.save(run.checkpoints, 1, {"method": {}}, {}, IDENTITY)


def test_refuses_another_config_and_names_the_difference(tmp_path):
    with RunFolder(tmp_path / "r") as run:
        begin(run, {"command": "a"})
    changed = IDENTITY | {"config": {"optim.lr": 0.2, "seed": 0}}
    with RunFolder(tmp_path / "r") as run, pytest.raises(ConfigError, match=r"optim\.lr: 0\.1 -> 0\.2"):
        run.claim(changed, {})
    with RunFolder(tmp_path / "r") as run, pytest.raises(ConfigError, match="data: 'd' -> 'e'"):
        run.claim(IDENTITY | {"data": "e"}, {})
    with RunFolder(tmp_path / "r") as run, pytest.raises(CheckpointError, match="a run of m, not of other"):
        run.claim(IDENTITY | {"method": "other"}, {})
    with RunFolder(tmp_path / "r") as run:
        run.claim(IDENTITY, {"command": "b"})
    sessions = json.loads((tmp_path / "r" / "run.json").read_text())["sessions"]
    assert [session["command"] for session in sessions] == ["a", "b"]


def test_a_failed_set_up_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError), RunFolder(tmp_path / "a" / "r"):
        raise ConfigError("x")
    assert not (tmp_path / "a" / "r").exists()


def test_a_failure_later_keeps_the_run(tmp_path):
    with pytest.raises(ConfigError), RunFolder(tmp_path / "r") as run:  # noqa: PT012
        begin(run, {})
        raise ConfigError("x")
    assert (tmp_path / "r" / "run.json").exists()


@pytest.mark.parametrize("existed", [False, True])
def test_a_run_that_fails_before_its_first_checkpoint_claims_nothing(tmp_path, existed):
    if existed:
        (tmp_path / "r" / "pictures").mkdir(parents=True)
        (tmp_path / "r" / "pictures" / "mine.png").write_text("mine")
    with pytest.raises(ConfigError), RunFolder(tmp_path / "r") as run:  # noqa: PT012
        run.claim(IDENTITY, {})
        run.write_curves([{"epoch": 0}])
        raise ConfigError("x")
    assert (tmp_path / "r" / "pictures" / "mine.png").exists() == existed
    assert (tmp_path / "r").exists() == existed
    with RunFolder(tmp_path / "r") as run:
        run.claim(IDENTITY | {"data": "e"}, {})


def test_a_run_that_was_killed_before_its_first_checkpoint_claims_nothing(tmp_path):
    with RunFolder(tmp_path / "r") as run:
        run.claim(IDENTITY, {"command": "a"})
    with RunFolder(tmp_path / "r") as run:
        run.claim(IDENTITY | {"data": "e"}, {"command": "b"})
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (record["identity"]["data"], [one["command"] for one in record["sessions"]]) == ("e", ["b"])


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"processes": 2, "versions": {"torch": "1"}}, "processes: 1 -> 2"),
        ({"processes": 1, "versions": {"torch": "2"}}, "torch: '1' -> '2'"),
        ({"processes": 1, "versions": {}}, "torch: '1' -> None"),
    ],
)
def test_what_a_resumption_runs_with_is_said_and_recorded(tmp_path, details, said):
    with RunFolder(tmp_path / "r") as run:
        begin(run, {"processes": 1, "versions": {"torch": "1"}})
    with RunFolder(tmp_path / "r") as run, pytest.warns(UserWarning, match=f"resumed with {said}; the result may"):
        run.claim(IDENTITY, details)
    with RunFolder(tmp_path / "r") as run:
        run.claim(IDENTITY, details)
    assert json.loads((tmp_path / "r" / "run.json").read_text())["sessions"][1:] == [details, details]


def test_a_disk_without_room_for_two_checkpoints_is_said_before_the_first(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with RunFolder(tmp_path / "r") as run:
        run.warn_if_short(1000)
        with pytest.warns(UserWarning, match=r"bytes free, two checkpoints need .*; free some space"):
            run.warn_if_short(free)


@pytest.mark.skipif(not Path("/proc").exists(), reason="sees processes in /proc")
def test_a_second_signal_leaves_no_worker(tmp_path):
    code = (
        "import multiprocessing, os, signal, time; from pathlib import Path\n"
        "from vitutor_core.train.signals import StopRequest\n"
        "def deaf():\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    time.sleep(60)\n"
        "worker = multiprocessing.get_context('fork').Process(target=deaf)\nworker.start()\n"
        "print(worker.pid, flush=True)\n"
        "with StopRequest(Path('.')):\n    [os.kill(os.getpid(), signal.SIGTERM) for _ in '12']"
    )
    done = forked.run(code, cwd=tmp_path, timeout=50)
    assert done.returncode == 143
    with contextlib.suppress(ProcessLookupError):  # it is gone, or dies without being waited for
        assert select.select([os.pidfd_open(int(done.stdout))], [], [], 50)[0]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "r").write_text("")
    with pytest.raises(ResourceError, match="cannot write there"):
        RunFolder(tmp_path / "r")


DAMAGED = (
    *("", "{", "[]", "null", "\xff", '{"identity": null, "sessions": [{}]}', '{"identity": {}, "sessions": [{}]}'),
    *('{"identity": {"method": "m"}, "sessions": []}', '{"sessions": [{}]}', '{"identity": 1, "sessions": [1]}'),
)


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_run_json_is_named(tmp_path, text):
    with RunFolder(tmp_path / "r") as run:
        begin(run, {})
    (tmp_path / "r" / "run.json").write_text(text, encoding="latin-1")
    with RunFolder(tmp_path / "r") as run, pytest.raises(CheckpointError, match=r"run\.json: not readable"):
        run.claim(IDENTITY, {})
    assert (tmp_path / "r" / "run.json").read_text(encoding="latin-1") == text


def test_curves_have_the_union_of_columns(tmp_path):
    with RunFolder(tmp_path / "r ü") as run:
        run.write_curves([{"epoch": 0, "a": 1.5}, {"epoch": 1, "b": 2}])
        assert (run.path / "curves.csv").read_text() == "epoch,a,b\n0,1.5,\n1,,2\n"


def test_a_full_disk_leaves_no_half_picture(tmp_path):
    with RunFolder(tmp_path / "r") as run:
        with full_disk(100), pytest.raises(ResourceError, match=r"noise-0001\.png: cannot write .*; free some space"):
            run.keep_pictures(1, {"noise": torch.rand(3, 40, 40)})
        assert not [path for path in run.files.pictures.iterdir() if path.stat().st_size]


def test_stop_request_counts_signals_and_sees_the_file(tmp_path):
    with StopRequest(tmp_path) as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.signal_number == signal.SIGUSR1
    with StopRequest(tmp_path) as stop:
        (tmp_path / "STOP").touch()
        stop.look_for_file()
        assert stop.signal_number == signal.SIGTERM
        assert not (tmp_path / "STOP").exists()


def test_a_second_signal_ends_at_once(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from vitutor_core.train.signals import StopRequest\n"
        "with StopRequest(Path('.')):\n    [os.kill(os.getpid(), signal.SIGTERM) for _ in '12']\n    print('here')"
    )
    done = forked.run(code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (143, "")
