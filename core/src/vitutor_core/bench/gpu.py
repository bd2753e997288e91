"""What only a GPU shows: waits of the host, kernels per step, and how steps scale with the number of GPUs."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vitutor_core.bench.driven import Driven
from vitutor_core.bench.methods import Subject
from vitutor_core.bench.plain import endless
from vitutor_core.bench.result import Result
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.bench.timing import wait_for
from vitutor_core.data.types import Batch, TrainLoader
from vitutor_core.distributed import Processes, processes
from vitutor_core.errors import first_line
from vitutor_core.files import write_json
from vitutor_core.schema import RunConfig
from vitutor_core.train.supervised import Supervised

STEPS = 100
_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


@contextmanager
def waits_refused() -> Iterator[None]:
    """Let torch raise where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def queue(
    subjects: Sequence[Subject],
    plain: RunConfig,
    train: TrainLoader,
    processes: Processes,
    refused: Callable[[], Any] = waits_refused,
) -> Result:
    """Count waits and kernels: `STEPS` steps of the plain student with its loader, and of each method.

    What torch says of a run that waits is under ``skipped``.
    """
    result = Result()
    data = synthetic(plain, processes.device)
    runs = [("plain student", Driven(plain, Supervised.build, data, processes), endless(train))]
    for subject in subjects:
        run = subject.drive(subject.config, processes)
        runs.append((subject.name, run, endless(run.data.train)))
    for name, run, batches in runs:
        for _ in range(3):  # what is made once is made
            run.update(next(batches))
        wait_for(processes.device)
        before = run.state.step
        try:
            with refused():
                for _ in range(STEPS):
                    run.update(next(batches))
        except RuntimeError as error:
            result.skipped[f"{name}: {STEPS} steps without a wait"] = first_line(error)
        result.figures[f"{name}: steps without a wait of the host, of {STEPS}"] = run.state.step - before
        result.figures[f"{name}: kernels launched per step"] = launches(run, batches)
    return result


def launches(run: Driven, batches: Iterator[tuple[Batch, ...]], count: int = 3) -> float:
    """Return how often a step launches a kernel or a graph of kernels."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        for _ in range(count):
            run.update(next(batches))
    return sum(int(event.count) for event in seen.key_averages() if event.key in _LAUNCHES) / count


Launch = Callable[[int, str, dict[str, Any]], None]
"""Calls ``module:function`` with JSON arguments in that many processes that work together."""


def scaling(
    config: RunConfig, seconds: float, launch: Launch, *, device: str = "cuda", most: int | None = None
) -> Result:
    """Compare a step of one process with one of ``most``, each with a batch of the same size; default: all GPUs."""
    result, most = Result(), torch.cuda.device_count() if most is None else most
    if most < 2:
        result.skipped["several GPUs"] = f"{most} GPU; it takes two"
        return result
    steps_s = []
    for size in (1, most):
        given = config.changed([f"train.batch_size={config.train.batch_size * size}"]).model_dump(mode="json")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder, "step.json")
            arguments = {"device": device, "seconds": seconds / 2, "config": given, "out": str(out)}
            launch(size, f"{__name__}:measure_scaled", arguments)
            steps_s.append(json.loads(out.read_text())["step_s"])
        result.figures[f"{size} processes: ms per step"] = 1e3 * steps_s[-1]
    result.figures[f"{most} processes: efficiency, of 1; goal 0.9"] = steps_s[0] / steps_s[-1]
    return result


def measure_scaled(device: str, seconds: float, config: dict[str, Any], out: str) -> None:
    """Time the plain step in one of the processes of `scaling`; the first writes the median in seconds to ``out``."""
    whole = RunConfig.from_mapping(config, where="bench")
    with processes(device) as group:
        own = whole.changed([f"train.batch_size={whole.train.batch_size // group.world_size}"])
        data = synthetic(own, group.device)
        run, batches, times = Driven(whole, Supervised.build, data, group), endless(data.train), list[float]()
        deadline = time.perf_counter() + seconds
        # All make the same number of steps: each waits for the others' gradients.
        while group.any(len(times) < 5 or time.perf_counter() < deadline):
            started = time.perf_counter()
            run.update(next(batches))
            wait_for(group.device)
            times.append(time.perf_counter() - started)
        if group.is_main:
            write_json(Path(out), {"step_s": statistics.median(times[2:])})
