"""What each installed method costs: its step over that of its plain student, in time and memory, and its teachers."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitutor_core.baseline import BaselineConfig
from vitutor_core.bench.driven import Driven
from vitutor_core.bench.result import Result, check_losses
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.bench.timing import wait_for
from vitutor_core.config import setting
from vitutor_core.distributed import Processes
from vitutor_core.schema import RunConfig
from vitutor_core.train.baseline import Baseline
from vitutor_core.train.session import BuildMethod

_UPDATES, _EPOCHS = 8, 2
"""Updates in a timed stretch; epochs whose logits are stored."""


@dataclass(frozen=True)
class Subject:
    """A row of a paper and the row of its plain student, with equal batches; its teachers have weights."""

    name: str
    build: BuildMethod
    config: RunConfig
    plain: BaselineConfig

    def drive(self, config: RunConfig, processes: Processes) -> Driven:
        """Set up a run of the method on batches of noise."""
        return _driven(config, self.build, processes)

    def drive_plain(self, processes: Processes) -> Driven:
        """Set up a run of the plain student on batches of noise."""
        return _driven(self.plain, Baseline.build, processes)


def methods(subjects: Sequence[Subject], processes: Processes, seconds: float) -> Result:
    """Compare each method's step with its plain student's."""
    result, device = Result(), processes.device
    for subject in subjects:
        taught, plain = subject.drive(subject.config, processes), subject.drive_plain(processes)
        for name, run in ((subject.name, taught), (f"{subject.name}, plain student", plain)):
            result.figures[f"{name}: MiB kept for the backward pass"] = kept_bytes(run) / 2**20
            if device.type == "cuda":
                result.figures[f"{name}: MiB at the peak of a step"] = peak_bytes(run, device) / 2**20
        first, second = (f"{subject.name}: step", _stepper(taught)), ("plain student: step", _stepper(plain))
        result.race(first, second, seconds=seconds / len(subjects), device=device)
    return result


def teachers(subjects: Sequence[Subject], processes: Processes, seconds: float) -> Result:
    """Compare steps that ask teachers with steps that find their logits stored, and these with plain ones."""
    result, device = Result(), processes.device
    taught = [
        (subject, subject.drive(subject.config.changed(["cache.folder=null"]), processes)) for subject in subjects
    ]
    asking = [(subject, run) for subject, run in taught if run.method.logit_teachers()]
    if not asking:
        result.skipped["teachers"] = "no installed method has a teacher of logits"
    for subject, online in asking:
        with tempfile.TemporaryDirectory() as folder:
            config = subject.config.changed([setting("cache.folder", folder)])
            writer, stored = subject.drive(config, processes), subject.drive(config, processes)
            losses = [_losses(run) for run in (writer, stored, online)]
            for found in losses[1:]:
                said = check_losses(f"{subject.name}, logits stored and online", found, losses[0], device)
            names = (f"{subject.name}: teacher online", f"{subject.name}: logits stored", "plain student")
            first, second, third = zip(
                names, map(_epochs, (online, stored, subject.drive_plain(processes))), strict=True
            )
            share = seconds / len(asking) / 2
            result.race(first, second, seconds=share, device=device, equal=said, goal=">= 1.8")
            result.race(second, third, seconds=share, device=device)
    return result


def kept_bytes(run: Driven) -> int:
    """Return the bytes that autograd keeps for the backward pass of a step beside the weights, each storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in run.method.state_dict().values()}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _stepper(run)()
    return sum(size for place, size in storages.items() if place not in weights)


def peak_bytes(run: Driven, device: torch.device) -> int:
    """Return the bytes that are allocated on a GPU at the peak of a step."""
    step = _stepper(run)
    step()
    wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    wait_for(device)
    return torch.cuda.max_memory_allocated(device)


def _driven(config: RunConfig, build: BuildMethod, processes: Processes) -> Driven:
    return Driven(config, build, synthetic(config, processes.device, updates=_UPDATES), processes)


def _stepper(run: Driven) -> Callable[[], Tensor]:
    """Return a function that makes the run's next step; stages that come later in the run do not begin."""
    batches = itertools.chain.from_iterable(run.data.train.epoch(0) for _ in itertools.count())
    return lambda: run.update(next(batches))


def _epochs(run: Driven) -> Callable[[], object]:
    """Return a function that makes the steps of the next stored epoch."""
    numbers = itertools.cycle(range(_EPOCHS))
    return lambda: [run.update(batches) for batches in run.data.train.epoch(next(numbers))]


def _losses(run: Driven) -> list[float]:
    """Return the losses of the stored epochs."""
    return [float(run.update(batches)) for epoch in range(_EPOCHS) for batches in run.data.train.epoch(epoch)]
