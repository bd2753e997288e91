"""What the lines of `vitutor compare` cost, before they are trained: each run, and all that it needs before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from vitutor_core.compare.contest import Contest, Entry
from vitutor_core.config import fingerprinted_fields
from vitutor_core.data.build import Planned
from vitutor_core.distributed import choose_device, effective_precision
from vitutor_core.errors import ConfigError, named
from vitutor_core.graph.needs import teachers_of
from vitutor_core.jobs.preflight import check_run
from vitutor_core.jobs.reproduce import Row
from vitutor_core.jobs.teacher import fitting_batch, recipe_teachers, teacher_config
from vitutor_core.schema import RunConfig
from vitutor_core.train.cost import Length, step_seconds, training_flops
from vitutor_core.train.method import Method
from vitutor_core.train.optim import build_schedule


class Price(NamedTuple):
    """Of one run: its updates, the FLOPs of training, and the seconds of an update."""

    updates: int
    flops: float
    step_seconds: float

    @property
    def seconds(self) -> float:
        return self.updates * self.step_seconds


class Prices:
    """Checks the rows of a contest with untrained teachers, and prices each of them and each teacher once."""

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._known: dict[str, Price] = {}
        self._shapes: dict[str, tuple[int, ...]] | None = None

    def check(self, entry: Entry) -> None:
        """Price a line and what it needs; raises `VitutorError` where it cannot be trained as it says."""
        for row, _ in self._contest.before(entry.row):
            self.of(row)
        self.of(entry.row, student_of=entry)
        for name, config in self.teachers(entry).items():
            self.teacher(name, config)

    def of(self, row: Row, *, student_of: Entry | None = None) -> Price:
        """Return the price of one run of a row."""
        key = f"{row.paper.package}/{row.name}"
        if key not in self._known:
            with named(f"{row.paper.command}, row {row.name}"):
                method, planned = check_row(row, self._contest.teacher_rows(row))
                if student_of is not None and student_of.is_common:
                    self._check_common(method.inference_model())
                self._known[key] = _price(method, planned, row.config(0))
        return self._known[key]

    def teachers(self, entry: Entry) -> dict[str, RunConfig]:
        """Return the configs of the teachers that a line and the rows before it have trained, by their recipes."""
        rows = [*(row for row, _ in self._contest.before(entry.row)), entry.row]
        found = (recipe_teachers(row.config(0), self._contest.scale) for row in rows)
        return {name: config for configs in found for name, config in configs.items()}

    def total(self, entry: Entry) -> float:
        """Return the FLOPs of one run of a line and of every run that it needs, each counted once and whole."""
        before = [self.of(row).flops for row, _ in self._contest.before(entry.row)]
        taught = [self.teacher(name, config).flops for name, config in self.teachers(entry).items()]
        return self.of(entry.row).flops + sum(before) + sum(taught)

    def teacher(self, name: str, config: RunConfig) -> Price:
        """Return the price of a teacher."""
        key = f"teacher {name} {sorted(fingerprinted_fields(config).items())}"
        if key not in self._known:
            with named(f"teacher {name}"):
                config = config.changed(fitting_batch(config, self._contest.budget.train.batch_size))
                method, planned = check_run(config, "vitutor_core.train.supervised:Supervised", {})
                self._known[key] = _price(method, planned, config)
        return self._known[key]

    def _check_common(self, model: nn.Module) -> None:
        """Raise `ConfigError` unless the model has the tensors of the first that was checked: the common student."""
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._shapes = self._shapes or shapes
        if shapes != self._shapes:
            strange = sorted(name for name in shapes | self._shapes if shapes.get(name) != self._shapes.get(name))
            raise ConfigError(
                f"its student is not the common one ({', '.join(strange[:3])}); let its line say what it has"
            )


def check_row(row: Row, others: Mapping[str, Row] = {}) -> tuple[Method, Planned]:
    """Check the configs of a row, and its first step, with untrained models in place of what comes before it.

    ``others`` are the rows that teach it, where they are not called as in the recipe. Returns the method.
    """
    config = row.config(0)
    return check_run(config.changed(["student.start_row=null"]), row.paper.method, missing_teachers(row, others))


def missing_teachers(row: Row, others: Mapping[str, Row]) -> dict[str, RunConfig]:
    """Return the configs of the teachers that a row needs trained, by their paths; ``others`` as in `check_row`."""
    config, found = row.config(0), {}
    for path, teacher in teachers_of(config):
        if teacher.weights is None and teacher.recipe is not None:
            found[path] = teacher_config(config, row.scale, teacher.recipe)
        elif teacher.weights is None and teacher.row is not None:
            found[path] = others.get(teacher.row, replace(row, name=teacher.row, of=None)).config(0)
    return found


def _price(method: Method, planned: Planned, config: RunConfig) -> Price:
    weights = torch.optim.SGD(method.student.parameters())
    build_schedule(weights, config.optim, config.train.epochs, planned.sampler.steps_per_epoch)  # or says what is wrong
    length = Length(config.train.epochs, planned.sampler.steps_per_epoch, config.train.batch_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(config.runtime.threads or threads)
    try:
        flops = training_flops(method, planned.info, length)
        device = choose_device(config.runtime.device)
        bf16 = effective_precision(config.train.precision, device) == "bf16"
        seconds = step_seconds(method, planned.info, length, device, bf16=bf16)
    finally:
        torch.set_num_threads(threads)
    updates = length.epochs * length.updates
    return Price(updates, flops, seconds)
