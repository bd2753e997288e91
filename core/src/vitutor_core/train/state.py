"""What changes during training, and how it is saved and restored."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3

from vitutor_core.data.types import Batch
from vitutor_core.distributed import Processes
from vitutor_core.evaluate.accuracy import Measured
from vitutor_core.models.weights import load_strictly
from vitutor_core.schema import RunConfig
from vitutor_core.train import checkpoint, optim
from vitutor_core.train.meter import Meter
from vitutor_core.train.method import Clock, Method
from vitutor_core.train.run_folder import RunFolder


@dataclass
class TrainState:
    """Optimiser, schedule, weight average, and the place in the run. Weights stay in the method."""

    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    ema: ModelEmaV3 | None
    identity: dict[str, Any]
    step: int = 0
    best_step: int = 0
    best_top1: float = -1.0
    last_metrics: dict[str, float] = field(default_factory=dict)
    last_correct: dict[str, str] = field(default_factory=dict)
    meter_sums: dict[str, float] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    """What earlier processes spent on the steps that the checkpoint holds, their start apart."""
    begun: float = 0.0
    """When this process began, by the monotonic clock."""

    @classmethod
    def build(
        cls,
        method: Method,
        config: RunConfig,
        found: checkpoint.Checkpoint | None,
        clock: Clock,
        identity: dict[str, Any],
    ) -> Self:
        """Start where the checkpoint ``found`` ends, or at step 0."""
        if found is not None:
            # The method has the shape of the epoch in which its last step was made.
            method.on_epoch(Clock(found.step - 1, clock.steps_per_epoch, clock.total_steps))
        optimizer = optim.build_optimizer(method, config.optim, config.train.batch_size)
        decay = config.train.ema_decay
        epochs = config.train.schedule_epochs or config.train.epochs
        state = cls(
            optimizer,
            optim.build_schedule(optimizer, config.optim, epochs, clock.steps_per_epoch),
            ModelEmaV3(method.inference_model(), decay=decay) if decay is not None else None,
            identity,
            begun=time.monotonic(),
        )
        if found is not None:
            state._restore(found, method)
        return state

    def size(self, method: Method) -> int:
        """Estimate the bytes of a checkpoint, with two moments per weight."""
        copies = 3 if self.ema is None else 4
        return copies * sum(int(value.nbytes) for value in method.state_dict().values())

    def _restore(self, found: checkpoint.Checkpoint, method: Method) -> None:
        load_strictly(method, found.tensors("method"), where=str(found.path))
        optim.load_optimizer_tensors(self.optimizer, method, found.tensors("optimizer"))
        if self.ema is not None:
            load_strictly(self.ema.module, found.tensors("ema"), where=str(found.path))
        for name, value in found.state.items():
            setattr(self, name, value)
        self.step = found.step

    def save(self, run: RunFolder, method: Method, meter: Meter, processes: Processes) -> None:
        """Save a checkpoint (first process only) and drop the older ones, except the best."""
        self.meter_sums = meter.sums()
        if processes.is_main:
            tensors = {
                "method": dict(method.state_dict()),
                "optimizer": optim.optimizer_tensors(self.optimizer, method),
            }
            if self.ema is not None:
                tensors["ema"] = dict(self.ema.module.state_dict())
            names = ("best_step", "best_top1", "last_metrics", "last_correct", "meter_sums", "curves")
            values = {name: getattr(self, name) for name in names}
            values["seconds"] = self.seconds + time.monotonic() - self.begun
            run.write_curves(self.curves)
            checkpoint.save(run.checkpoints, self.step, tensors, values, self.identity)
            checkpoint.prune(run.checkpoints, keep={self.best_step})
        processes.barrier()

    def end_epoch(self, line: dict[str, Any], measured: Measured) -> None:
        """Append an epoch to the curves and note whether it is the best so far."""
        self.curves.append(line)
        self.last_metrics, self.last_correct = measured[:2]
        if "top1" in line and line["top1"] > self.best_top1:
            self.best_step, self.best_top1 = self.step, line["top1"]

    def write_crash(self, run: RunFolder, meter: Meter, micro_batches: tuple[Batch, ...]) -> None:
        """Write what is known of a non-finite step; checkpoints are left alone."""
        indices = [index for batch in micro_batches for index in batch.indices.tolist()]
        losses = [str(float(loss)) for loss in meter.recent]
        details = {"step": self.step, "sample_indices": indices, "last_losses": losses}
        run.write_crash(self.step, details)
