"""Make one step of a run again, from the nearest checkpoint before it: all randomness is keyed, so that is enough.

Of a run of several processes, as many make it, each its own part.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from vitutor_core.data.build import plan_data
from vitutor_core.data.detection.open import is_annotated, open_annotated, usable
from vitutor_core.data.types import Batch, TrainLoader
from vitutor_core.distributed import Processes, gather_rows, processes, synchronise_batch_norm
from vitutor_core.errors import ConfigError
from vitutor_core.progress import RunProgress
from vitutor_core.schema import RunConfig
from vitutor_core.train import checkpoint, optim
from vitutor_core.train.memory import advise_for_training
from vitutor_core.train.meter import Meter
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.origin import AS_MADE, Origin
from vitutor_core.train.run_folder import check_same
from vitutor_core.train.session import BuildMethod, circumstances, identity_of, opened
from vitutor_core.train.state import TrainState
from vitutor_core.train.update import Updater


@dataclass
class Replayed:
    """A step that was made again.

    Attributes:
        step: its number, from 0: the one that was asked for or, before it, the first that is not finite.
        total: steps of the run.
        epoch: its epoch, from 0.
        start: step of the checkpoint from which it was reached; 0 for the initialisation.
        terms: the loss and its parts, means over the step's images, of all processes.
        norms: norm of the gradient, before clipping, of each module and, as "all", of all.
        lr: highest learning rate of the step.
        images: (B, 3, H, W) in [0, 1], as the model saw them; one process after the other.
        names: where each image comes from, and its class; no class where an image has objects.
        recorded: the epoch's means as curves.csv has them; empty where it does not.
        repeated: the epoch's means, replayed; empty unless the epoch was gone through.
        crash: the loss that the run, or its first process, noted of this step when it was not finite.
        notes: what may make the last digits differ.

    """

    step: int
    total: int
    epoch: int
    start: int
    terms: dict[str, float]
    norms: dict[str, float]
    lr: float
    images: Tensor
    names: list[tuple[str, str]]
    recorded: dict[str, float] = field(default_factory=dict)
    repeated: dict[str, float] = field(default_factory=dict)
    crash: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def not_finite(self) -> list[str]:
        """Return which terms, and the gradients of which modules, are NaN or infinite."""
        gradients = {f"gradient of {name}": norm for name, norm in self.norms.items()}
        return [name for name, value in (self.terms | gradients).items() if not math.isfinite(value)]


def replay(origin: Origin, config: RunConfig, build: BuildMethod, step: int, *, whole_epoch: bool = False) -> Replayed:
    """Make ``step``, counted from 0, of a run again; a step before it that is not finite is the one returned.

    ``config`` is that of the run but for runtime fields. ``whole_epoch`` goes on to the end of the epoch, to compare
    its means with those recorded. Nothing is written but, where ``cache.folder`` is set, a teacher's logits of an epoch
    that is made again as a whole. All processes of a run call it. Raises `ConfigError` where the run is another, has no
    such step, or had another number of processes, and `CheckpointError` for damaged files.
    """
    threads = origin.made_with[-1]["threads"] or config.runtime.threads
    if threads is not None:
        torch.set_num_threads(threads)
    with processes(config.runtime.device) as group:
        if group.world_size != origin.processes:
            raise ConfigError(
                f"{origin.run}: the number of processes was {origin.processes}, and is {group.world_size}; {AS_MADE}"
            )
        with opened(config, build, group) as (data, built):
            method = synchronise_batch_norm(built) if config.runtime.sync_batch_norm else built
            identity = identity_of(config, origin.package, data, method)
            origin.check(identity)
            updates = data.train.steps_per_epoch
            clock = Clock(step, updates, updates * config.train.epochs)
            if step >= clock.total_steps:
                raise ConfigError(f"--step {step}: the run has {clock.total_steps} steps, counted from 0")
            found = checkpoint.latest_until(origin.run / "checkpoints", step)
            if found is not None:
                check_same(found.path, found.identity, identity, AS_MADE)
            with advise_for_training(config, group.device):
                method.to(group.device)
                run = _Run(method, config, group, TrainState.build(method, config, found, clock, identity), updates)
                seen = run.until(step, data.train, whole_epoch=whole_epoch)
        here = circumstances(origin.package, group)
        images, indices = gather_rows(seen.images), gather_rows(torch.tensor(run.indices, device=group.device))
        seen = replace(seen, images=_pixels(images, data.info.mean, data.info.std))
        seen.names = _names(config, indices.tolist())
        seen.recorded = origin.recorded(seen.epoch)
        seen.crash = origin.crash_loss(seen.step, run.indices)
        seen.notes = origin.notes(here)
        return seen


class _Run:
    """Goes from a checkpoint to a step and, if asked to, to the end of its epoch."""

    def __init__(
        self, method: Method, config: RunConfig, group: Processes, state: TrainState, steps_per_epoch: int
    ) -> None:
        self._method, self._state, self._updates, self._group = method, state, steps_per_epoch, group
        self._total = steps_per_epoch * config.train.epochs
        self._start = state.step
        self._title = f"replay of {config.student.name}"
        self._updater = Updater(method, config, group, state)
        self._updater.guard.deferred = True  # a step that is not finite is what is looked for
        self.indices: list[int] = []

    def until(self, step: int, loader: TrainLoader, *, whole_epoch: bool) -> Replayed:
        """Go on; return ``step`` or, before it, the first that is not finite."""
        state, seen = self._state, None
        with RunProgress(self._title, step + 1 - self._start) as progress:
            for epoch in range(state.step // self._updates, step // self._updates + 1):
                self._updater.begin_epoch(Clock(epoch * self._updates, self._updates, self._total))
                for micro_batches in loader.epoch(epoch, start_step=state.step - epoch * self._updates):
                    outputs = self._updater.differentiate(micro_batches, Clock(state.step, self._updates, self._total))
                    progress.update(min(state.step, step) - self._start, "steps")
                    if seen is None:
                        now = self._look(epoch, micro_batches, outputs)
                        if state.step == step or now.not_finite:
                            seen = now
                            self.indices = [index for batch in micro_batches for index in batch.indices.tolist()]
                    if seen is not None and (seen.not_finite or not (whole_epoch or self._is_last())):
                        return seen
                    self._updater.step()
                means = self._updater.meter.epoch_line()
                if seen is not None:
                    seen.repeated = means
                    return seen
        raise AssertionError("the step lies in the last epoch")

    def _is_last(self) -> bool:
        """Return whether the epoch ends with this step, so that its means cost nothing."""
        return (self._state.step + 1) % self._updates == 0

    def _look(self, epoch: int, micro_batches: tuple[Batch, ...], outputs: list[StepOutput]) -> Replayed:
        own = Meter(self._group, {})
        for output, batch in zip(outputs, micro_batches, strict=True):
            own.add(output, len(batch.images))
        sums = own.sums()
        return Replayed(
            step=self._state.step,
            total=self._total,
            epoch=epoch,
            start=self._start,
            terms={name: sums[name] / sums["images"] for name in ("train_loss", *outputs[0].parts)},
            norms=gradient_norms(self._method),
            lr=optim.highest_lr(self._state.optimizer),
            images=torch.cat([batch.images for batch in micro_batches]),
            names=[],
        )


def gradient_norms(method: nn.Module) -> dict[str, float]:
    """Return the norm of the gradient of each module of the method's parts, and of "all", in the order of the model."""
    grouped: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in method.named_parameters():
        if parameter.grad is not None:
            grouped[".".join(name.split(".")[:2])].append(parameter.grad)
            grouped["all"].append(parameter.grad)
    norms = {name: float(nn.utils.get_total_norm(gradients)) for name, gradients in grouped.items()}
    return {"all": norms.pop("all"), **norms}


def _pixels(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    shift, scale = (torch.tensor(value, device=images.device).view(-1, 1, 1) for value in (mean, std))
    return (images * scale + shift).clamp(0, 1).cpu()


def _names(config: RunConfig, indices: list[int]) -> list[tuple[str, str]]:
    if is_annotated(config.data.source):
        annotated = open_annotated(config.data.source).train
        return [(annotated.images.where(sample), "") for sample in usable(annotated)[indices].tolist()]
    planned = plan_data(config)
    split, classes = planned.source.train, planned.source.class_names
    samples = [int(planned.indices[index]) for index in indices]
    return [(split.where(sample), classes[int(split.labels[sample])]) for sample in samples]
