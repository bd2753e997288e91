"""Jobs side by side: signals, failures, and what is said of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from vitutor_core.cli import launch
from vitutor_core.cli.launch import Job, run_jobs
from vitutor_core.cli.options import seed_numbers
from vitutor_core.errors import ConfigError, InterruptedRun, VitutorError
from vitutor_core.paper import installed_papers, load


class FakeContext:
    """Stands for the fork server: ``act`` is called in the middle of each start."""

    def __init__(self, act, exitcode):
        self.act, self.exitcode, self.made = act, exitcode, []

    def set_forkserver_preload(self, modules):
        pass

    def Process(self, target, args):  # noqa: N802  # multiprocessing's name
        self.made.append(FakeProcess(self))
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
        run_fakes.made, run_fakes.done = context.made, done


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
    command = [sys.executable, "-m", "vitutor_core.cli.launch", json.dumps(launch.asdict(job))]
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


def test_a_job_that_may_use_one_core_starts_no_more_runs(monkeypatch):
    monkeypatch.setattr(launch.Path, "exists", lambda _: False)  # no GPU
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {3})
    assert launch.default_jobs() == 2
