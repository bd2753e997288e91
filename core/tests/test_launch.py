"""Jobs side by side: signals, failures, and what is said of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import forked
from vitutor_core import provenance
from vitutor_core.cli.options import seed_numbers
from vitutor_core.errors import ConfigError, InterruptedRun, VitutorError
from vitutor_core.jobs import launch
from vitutor_core.jobs.launch import Job, run_jobs
from vitutor_core.paper import installed_papers, load


class FakeContext:
    """Stands for the fork server: ``act`` is called in the middle of each start."""

    def __init__(self, act, exitcode):
        self.act, self.exitcode, self.made, self.arguments = act, exitcode, [], []

    def set_forkserver_preload(self, modules):
        pass

    def Process(self, target, args):  # noqa: N802  # multiprocessing's name
        self.made.append(FakeProcess(self))
        self.arguments.append(args)
        return self.made[-1]


class FakeProcess:
    pid = None

    def __init__(self, context):
        self.context, self.told, self.exitcode, self.asked = context, 0, None, 0

    def start(self):
        self.context.act()
        self.pid = 2**22 + 1

    def terminate(self):
        self.told += 1
        self.exitcode = 143

    def is_alive(self):
        self.asked += 1
        assert self.asked < 100, "nobody has told it to stop"
        if self.exitcode is None:
            self.exitcode = self.context.exitcode
        return self.exitcode is None


def run_fakes(monkeypatch, act, exitcode, side_by_side=2):
    context, done = FakeContext(act, exitcode), []
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    jobs = [Job(name, "module:function", {}) for name in "abc"]
    try:
        run_jobs(jobs, side_by_side, preload=[], tick=lambda: None, done=lambda job: done.append(job.name))
    finally:
        run_fakes.made, run_fakes.done, run_fakes.arguments = context.made, done, context.arguments


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_during_a_start_reaches_the_process_that_was_being_started(monkeypatch, number, code):
    with pytest.raises(InterruptedRun) as caught:
        run_fakes(monkeypatch, lambda: os.kill(os.getpid(), number), None, side_by_side=1)
    assert caught.value.exit_code == code
    assert [process.told for process in run_fakes.made] == [1]


def test_a_run_that_was_killed_is_named(monkeypatch):
    with pytest.raises(VitutorError, match=r"^a: killed by SIGKILL; run it again to go on$") as caught:
        run_fakes(monkeypatch, lambda: None, -signal.SIGKILL)
    assert caught.value.exit_code == 1
    assert len(run_fakes.made) == 2  # the third is not begun
    assert run_fakes.done == []


def test_signal_handlers_are_restored_and_each_job_is_told_of_once(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run_fakes(monkeypatch, lambda: None, 0)
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(run_fakes.done) == ["a", "b", "c"]


def test_a_process_of_a_job_names_it_in_its_error():
    job = Job("vit, seed 3", "vitutor_core.recipe:read_recipe", {"path": "x"})  # a bug: the path is a text
    command = [forked.python(), "-m", "vitutor_core.jobs.launch", json.dumps(launch.asdict(job))]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 1
    job = Job("vit, seed 3", "vitutor_core.paper:installed_paper", {"package": "nothing"})
    command[-1] = json.dumps(launch.asdict(job))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: vit, seed 3: paper 'nothing' is not installed; pip install ./nothing"


def test_papers_are_announced_without_heavy_imports_and_their_references_load():
    script = "import sys; from vitutor_core.paper import installed_papers; installed_papers(); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "dearkd.cli" in modules
    assert not {"torch", "timm", "matplotlib"} & set(modules)
    for paper in installed_papers().values():
        assert issubclass(load(paper.config), load("vitutor_core.schema:RunConfig"))
        assert callable(load(paper.method).build)
        assert paper.stages is None or callable(load(paper.stages))


@pytest.mark.parametrize("text", ["0,0", "-1", "0,-2", "a", "", "1,"])
def test_seeds_that_cannot_be(text):
    with pytest.raises(ConfigError, match="--seeds"):
        seed_numbers(text)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with as many GPUs as is said, and a torch that can use them."""

    def with_gpus(count, chosen=None):
        for name in ["null", "nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(count))]:
            (tmp_path / name).touch()
        monkeypatch.setattr(provenance, "Path", lambda _: tmp_path)
        monkeypatch.setattr(provenance, "version", lambda _: "2.13.0")
        monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if chosen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)

    return with_gpus


def test_a_job_that_may_use_one_core_starts_no_more_runs(machine):
    machine(0)
    assert launch.default_jobs() == 2
    assert launch.default_jobs(processes=4) == 1


@pytest.mark.parametrize(
    ("count", "chosen", "device", "usable"),
    [
        (4, None, "auto", ["0", "1", "2", "3"]),
        (4, "2, 3", "cuda", ["2", "3"]),
        (4, "2,3", "cuda:1", ["3"]),
        (4, "", "auto", []),
        (4, "-1", "auto", []),
        (1, "MIG-4e1c", "auto", ["MIG-4e1c"]),
        (4, None, "cpu", []),
        (0, "0", "auto", []),
    ],
)
def test_the_gpus_that_a_device_may_mean(machine, monkeypatch, count, chosen, device, usable):
    machine(count, chosen)
    assert provenance.usable_gpus(device) == usable
    assert launch.default_jobs(device) == (len(usable) or 2)
    monkeypatch.setattr(provenance, "version", lambda _: "2.13.0+cpu")
    assert provenance.usable_gpus(device) == []


@pytest.mark.parametrize(
    ("count", "side_by_side", "processes", "given"),
    [
        (4, 4, 1, ["0", "1", "2", "3"]),
        (2, 3, 1, ["0", "1", "0"]),
        (5, 2, 2, ["0,1", "2,3"]),
        (1, 2, 1, [None, None]),
        (4, 1, 4, [None]),
        (0, 2, 1, [None, None]),
    ],
)
def test_each_job_has_gpus_of_its_own(machine, count, side_by_side, processes, given):
    machine(count)
    assert [of.get("CUDA_VISIBLE_DEVICES") for of in launch.gpus_of_jobs(side_by_side, processes, "auto")] == given


def test_a_job_takes_the_gpu_of_the_one_that_has_ended(machine, monkeypatch):
    machine(2)
    run_fakes(monkeypatch, lambda: None, 0)
    gpus = [args[-1]["CUDA_VISIBLE_DEVICES"] for args in run_fakes.arguments]
    assert gpus[:2] == ["0", "1"]
    assert gpus[2] in {"0", "1"}


def where_i_am(out):
    """What a job of the next test does."""
    Path(out).write_text(os.environ["CUDA_VISIBLE_DEVICES"])


@pytest.mark.slow
def test_the_variable_arrives_in_the_process_of_a_job(machine, tmp_path):
    machine(4)
    jobs = [Job(name, f"{__name__}:where_i_am", {"out": str(tmp_path / name)}) for name in ("a", "b")]
    run_jobs(jobs, 2, preload=[], tick=lambda: None)
    assert {(tmp_path / name).read_text() for name in ("a", "b")} == {"0", "1"}
