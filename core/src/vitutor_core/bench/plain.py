"""The loop's step against the step that one would write by hand with timm: the same ViT, batches and optimiser."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.bench.driven import Driven
from vitutor_core.bench.result import Result, check_losses
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.bench.timing import interleave
from vitutor_core.data.types import Batch, Data, TrainLoader
from vitutor_core.distributed import Processes, effective_precision
from vitutor_core.models.weights import create_student
from vitutor_core.schema import RunConfig
from vitutor_core.train.supervised import Supervised

_UPDATES = 5
COMPILE_S = 120.0
"""What compiling two steps may take; with less time it is left out."""


class ByHand:
    """Forward, loss, backward, clip, update, schedule, and the loss is read in every step, as timm's script does."""

    def __init__(self, config: RunConfig, data: Data, device: torch.device) -> None:
        torch.manual_seed(config.seed)
        self.model = create_student(config.student, data.info).to(device).train()
        self._optimizer = create_optimizer_v2(
            self.model, "adamw", lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=True
        )
        updates = data.train.steps_per_epoch
        self._schedule, _ = create_scheduler_v2(
            self._optimizer,
            num_epochs=config.train.epochs,
            min_lr=config.optim.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
        self._forward: Callable[[Tensor], Tensor] = torch.compile(self.model) if config.train.compile else self.model
        self._clip = config.optim.clip_norm
        self._bf16 = effective_precision(config.train.precision, device) == "bf16"
        self._device, self._step = device, 0

    def update(self, micro_batches: tuple[Batch, ...]) -> float:
        """Make one update and return its loss."""
        (batch,) = micro_batches
        self._schedule.step_update(self._step)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            loss = F.cross_entropy(self._forward(batch.images), batch.targets)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        self._optimizer.step()
        self._step += 1
        return loss.item()


def steps(config: RunConfig, processes: Processes, seconds: float) -> Result:
    """Compare eager with eager and, where there is time, compiled with compiled."""
    result, device = Result(), processes.device
    data = synthetic(config, device)
    ours, theirs = Driven(config, Supervised.build, data, processes), ByHand(config, data, device)
    said = _check_equal(ours, theirs, data)
    compiles = seconds > COMPILE_S
    each = (seconds - COMPILE_S) / 3 if compiles else seconds
    eager = ("plain step", partial(_next, ours, endless(data.train)))
    by_hand = ("timm step by hand", partial(_next, theirs, endless(data.train)))
    result.race(by_hand, eager, seconds=each, device=device, equal=said)
    if not compiles:
        result.skipped["compiled steps"] = f"compiling takes up to {COMPILE_S:.0f} s; give more --minutes"
        return result
    config = config.changed(["train.compile=true"])
    ours, theirs = Driven(config, Supervised.build, data, processes), ByHand(config, data, device)
    said = _check_equal(ours, theirs, data, rtol=None if device.type == "cuda" else 1e-4)
    compiled = ("plain step, compiled", partial(_next, ours, endless(data.train)))
    by_hand = ("timm step by hand, compiled", partial(_next, theirs, endless(data.train)))
    result.race(by_hand, compiled, seconds=each, device=device, equal=said, goal=">= 1.15")
    result.race(eager, compiled, seconds=each, device=device)
    return result


def waiting(config: RunConfig, train: TrainLoader, processes: Processes, seconds: float) -> Result:
    """Compare a step that takes a batch from a loader with one whose batch is there."""
    result, device = Result(), processes.device
    ours = Driven(config, Supervised.build, synthetic(config, device), processes)
    batches = endless(train)
    fixed = next(batches)
    # Loaders prepare several batches at once, so a step is a stretch of updates.
    stretch = 16
    result.add(
        "16 steps with the resident loader",
        "16 steps on one batch",
        interleave(
            lambda: [ours.update(next(batches)) for _ in range(stretch)],
            lambda: [ours.update(fixed) for _ in range(stretch)],
            seconds=seconds,
            warm_up=1,
            device=device,
        ),
        goal="<= 1.05",
    )
    return result


def _next(step: Driven | ByHand, batches: Iterator[tuple[Batch, ...]]) -> None:
    step.update(next(batches))


def endless(train: TrainLoader) -> Iterator[tuple[Batch, ...]]:
    """Yield the batches of all epochs."""
    return itertools.chain.from_iterable(train.epoch(number) for number in itertools.count())


def _check_equal(ours: Driven, theirs: ByHand, data: Data, *, rtol: float | None = None) -> str:
    """Make updates from the same weights with both; raises `VitutorError` unless the losses are the same."""
    batches = list(itertools.islice(endless(data.train), _UPDATES))
    found, expected = [float(ours.update(batch)) for batch in batches], [theirs.update(batch) for batch in batches]
    who = "the plain step and timm's by hand"
    return check_losses(who, found, expected, ours.processes.device, rtol=rtol)
