"""Run several jobs side by side in processes of their own, or each of them as several processes under torchrun.

As a program this module is torchrun, ``python -m vitutor_core.jobs.launch JOB PROCESSES``, and what torchrun starts,
``python -m vitutor_core.jobs.launch JOB``. Imports nothing heavy.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from vitutor_core.errors import InterruptedRun, VitutorError
from vitutor_core.paper import load
from vitutor_core.progress import QUIET
from vitutor_core.provenance import usable_cores, usable_gpus
from vitutor_core.terminal import exit_after
from vitutor_core.train.signals import STOP_SIGNALS

Environment = Mapping[str, str]
"""Variables that are set for one job."""


@dataclass(frozen=True)
class Job:
    """A call of ``target`` (``module:function``) with JSON values as ``arguments``; ``name`` is for messages."""

    name: str
    target: str
    arguments: dict[str, Any]


def default_jobs(device: str = "auto", processes: int = 1) -> int:
    """Return how many jobs of so many processes run side by side on a ``runtime.device``."""
    gpus = len(usable_gpus(device))
    if gpus or processes > 1:
        return max(gpus // processes, 1)
    # A small model keeps one core busy. One job more costs a tenth of the rate (`benchmarks.cores`), and yet three
    # seeds on two cores end sooner together than two and then one.
    return usable_cores() + 1


def run_jobs(
    jobs: Sequence[Job],
    side_by_side: int,
    *,
    preload: Sequence[str],
    tick: Callable[[], None],
    done: Callable[[Job], None] = lambda job: None,
    processes: int = 1,
    device: str = "auto",
) -> None:
    """Run ``jobs``, ``side_by_side`` at a time, each as ``processes`` processes.

    Where there are GPUs for more than one job, each job gets GPUs of its own in CUDA_VISIBLE_DEVICES.
    ``tick`` is called while they run, and ``done`` for each job that has ended well; ``preload`` are the heavy modules
    that single processes share. Raises `InterruptedRun` when asked to stop, after the jobs have, and `VitutorError`
    when one of them fails.
    """
    # The fork server imports the heavy packages once for all jobs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preload, "sklearn.datasets"])
    threads = max(1, usable_cores() // min(side_by_side, len(jobs)) // processes)

    def start(job: Job, gpus: Environment) -> BaseProcess | _Torchrun:
        if processes > 1:
            return _Torchrun(job, processes, threads, gpus)
        process = context.Process(target=_child, args=(job, threads, gpus))
        process.start()
        return process

    waiting = list(jobs)
    places = gpus_of_jobs(side_by_side, processes, device)
    running: dict[BaseProcess | _Torchrun, tuple[Job, Environment]] = {}
    arrived: list[int] = []

    # Passed on by the loop below: while a process is being started, its handler could not reach it.
    def note_signal(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note_signal) for number in STOP_SIGNALS}
    stopped_by = 0
    failed: tuple[Job, int] | None = None
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side:
                job, place = waiting.pop(0), places.pop(0)
                running[start(job, place)] = job, place
            time.sleep(0.05)
            tick()
            while arrived:
                stopped_by = arrived.pop()
                waiting.clear()
                _terminate(running)
            for process in [process for process in running if not process.is_alive()]:
                job, place = running.pop(process)
                places.append(place)
                if process.exitcode == 0:
                    done(job)
                elif failed is None and not stopped_by:
                    failed = job, process.exitcode or 1
                    waiting.clear()
                    _terminate(running)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        raise InterruptedRun("stopped and saved; run it again to go on", stopped_by)
    if failed is not None:
        _raise(*failed)


def gpus_of_jobs(side_by_side: int, processes: int, device: str) -> list[Environment]:
    """Return, for each of the jobs that run at a time, the variable that gives it ``processes`` GPUs of its own.

    With GPUs for one job alone, or none, nothing is set; jobs beyond the GPUs share them in turn.
    """
    gpus = usable_gpus(device)
    shares = [gpus[start : start + processes] for start in range(0, len(gpus) - processes + 1, processes)]
    if len(shares) < 2:
        return [{}] * side_by_side
    return [{"CUDA_VISIBLE_DEVICES": ",".join(shares[job % len(shares)])} for job in range(side_by_side)]


def _raise(job: Job, code: int) -> None:
    if code < 0:
        raise VitutorError(f"{job.name}: killed by {signal.Signals(-code).name}; run it again to go on")
    error = VitutorError("a run failed; its message is above")
    error.exit_code = code
    raise error


def _terminate(running: Iterable[BaseProcess | _Torchrun]) -> None:
    for process in running:
        process.terminate()


def _child(job: Job, threads: int, gpus: Environment) -> None:
    import torch

    os.environ.update({QUIET: "1", **gpus})  # torch reads which GPUs there are when it is asked for the first one
    os.setsid()  # signals reach a job once, through its parent
    torch.set_num_threads(threads)
    _call(job)


def _call(job: Job) -> NoReturn:
    exit_after(lambda: load(job.target)(**job.arguments), who=f"{job.name}: ")


class _Torchrun:
    """Several processes of one job, with the interface of one process."""

    def __init__(self, job: Job, processes: int, threads: int, gpus: Environment) -> None:
        command = [sys.executable, "-m", "vitutor_core.jobs.launch", json.dumps(asdict(job)), str(processes)]
        environment = os.environ | {QUIET: "1", "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR", **gpus}
        self._process = subprocess.Popen(command, env=environment, start_new_session=True)

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        self._process.terminate()


def main() -> None:
    """Run the job that the first argument describes, as several processes if a second one says how many."""
    if len(sys.argv) > 2:
        sys.exit(_run_processes(sys.argv[1], processes=int(sys.argv[2])))
    _call(Job(**json.loads(sys.argv[1])))


def _run_processes(job: str, processes: int) -> int:
    """Return the exit code of the process that failed first, where torchrun itself gives 1 and a traceback."""
    import logging

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.CRITICAL)  # torchrun repeats with a traceback what the processes have said
    # Processes agree to stop once in a log interval, then save: torchrun's own 30 seconds would kill them on the way.
    arguments = ["--standalone", f"--nproc-per-node={processes}", "--shutdown-timeout=120"]
    arguments += ["-m", "vitutor_core.jobs.launch", job]
    try:
        run.main(arguments)
    except ChildFailedError as error:
        # A process that lost another one ends with 1: the other's code says more.
        failures = sorted(error.failures.values(), key=lambda failure: failure.timestamp)
        code = next((one.exitcode for one in failures if one.exitcode != 1), 1)
        return code if code > 0 else 128 - code  # killed by a signal
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    main()
