"""A run that is driven step by step, without the loop's evaluation, logging and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vitutor_core.data.types import Batch, Data
from vitutor_core.distill.taught import with_stored_logits
from vitutor_core.distributed import Processes
from vitutor_core.schema import RunConfig
from vitutor_core.train.method import Clock
from vitutor_core.train.session import BuildMethod
from vitutor_core.train.state import TrainState
from vitutor_core.train.update import Updater


class Driven:
    """Data, method and updater of a run, as the training loop puts them together.

    `update` is all that the loop does in a step; what it reads of the device, it reads between two of them.
    """

    def __init__(self, config: RunConfig, build: BuildMethod, data: Data, processes: Processes) -> None:
        self.processes = processes
        torch.manual_seed(config.seed)
        self.method: Any = build(config, data.info).to(processes.device)
        self.data = with_stored_logits(data, self.method.logit_teachers, config, processes)
        self.updates = self.data.train.steps_per_epoch
        self._total = self.updates * config.train.epochs
        self.state = TrainState.build(self.method, config, None, Clock(0, self.updates, self._total), {})
        self.updater = Updater(self.method, config, processes, self.state)
        self.method.train()

    @property
    def clock(self) -> Clock:
        """Where the run is; it goes on in its last epoch after its end."""
        return Clock(min(self.state.step, self._total - 1), self.updates, self._total)

    def update(self, micro_batches: tuple[Batch, ...]) -> Tensor:
        """Make one update and return its last loss, on the device."""
        self.updater.update(micro_batches, self.clock)
        return self.updater.meter.recent[-1]

    def epoch(self, number: int) -> Iterator[Tensor]:
        """Make the updates of an epoch and yield the loss of each, on the device."""
        self.updater.begin_epoch(Clock(number * self.updates, self.updates, self._total))
        for micro_batches in self.data.train.epoch(number):
            yield self.update(micro_batches)

    def close(self) -> None:
        """Shut the loader's workers down."""
        self.data.train.close()
