"""One update of the weights: forward, check, backward, check, clip, step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vitutor_core.data import keyed
from vitutor_core.data.types import Batch
from vitutor_core.distill.teacher import teachers_within
from vitutor_core.distributed import Processes, effective_precision
from vitutor_core.errors import ConfigError, first_line
from vitutor_core.schema import RunConfig
from vitutor_core.train import optim
from vitutor_core.train.guard import FiniteGuard
from vitutor_core.train.meter import Meter
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.state import TrainState

NoSync = Callable[[], AbstractContextManager[Any]]


@dataclass
class Updater:
    """Makes updates of a method's weights; call `wrap` again when the method has lost parameters."""

    method: Method
    config: RunConfig
    processes: Processes
    state: TrainState
    guard: FiniteGuard = field(init=False)
    meter: Meter = field(init=False)
    _wrapped: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.guard = FiniteGuard(self.state.optimizer, self.processes.device)
        self.meter = Meter(self.processes, self.state.meter_sums)
        self.wrap()

    def wrap(self) -> None:
        """Compile and wrap the method. DDP would wait for gradients of parameters that are gone."""
        for teacher in teachers_within(self.method):
            teacher.to(self.processes.device)
        compiled = torch.compile(self.method) if self.config.train.compile else self.method
        self._wrapped = self.processes.wrap(compiled)  # type: ignore[arg-type]  # torch.compile keeps modules modules

    def begin_epoch(self, clock: Clock) -> None:
        """Shape the method for the epoch that begins at ``clock``, and let it train."""
        if self.method.on_epoch(clock):
            optim.drop_removed_parameters(self.state.optimizer, self.method)
            self.wrap()
        self.method.train()

    def update(self, micro_batches: tuple[Batch, ...], clock: Clock) -> None:
        """Make the update of ``clock.step`` from this process's micro-batches; raises `NonFiniteError`."""
        self.differentiate(micro_batches, clock)
        self.step()

    def differentiate(self, micro_batches: tuple[Batch, ...], clock: Clock) -> list[StepOutput]:
        """Leave the gradient of ``clock.step`` in the method's parameters; raises `NonFiniteError` for its loss.

        Returns what each micro-batch gave, for those who look at a step.
        """
        outputs = []
        optim.set_learning_rate(self.state.schedule, clock)
        self.state.optimizer.zero_grad(set_to_none=True)
        rule = self.method.update_rule() or backward_once
        no_sync: NoSync = getattr(self._wrapped, "no_sync", nullcontext)
        # For each kind of GPU that is not in use, torch.manual_seed formats the stack: half a millisecond.
        on_cpu = self.processes.device.type == "cpu"
        seed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
        for number, batch in enumerate(micro_batches):
            # Dropout is a function of the step, as the data are: a resumed run needs no generator state.
            seed(keyed.seed_from(self.config.seed, clock.step, self.processes.rank, number))
            prepared = self.method.prepare(batch, clock)

            def forward(batch: Batch = prepared) -> StepOutput:
                return self._forward(batch, clock)

            with advise_without_compile(), nullcontext() if number == len(micro_batches) - 1 else no_sync():
                output = rule(forward, scale=1.0 / len(micro_batches), no_sync=no_sync)
            self.meter.add(output, batch.images.shape[0])
            outputs.append(StepOutput(output.loss.detach(), parts=output.parts))
        return outputs

    def step(self) -> None:
        """Update the weights by the gradient that is there; raises `NonFiniteError` for its norm."""
        state, method, clip_norm = self.state, self.method, self.config.optim.clip_norm
        norm = nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])
        self.guard.check(norm, "gradient norm")
        if clip_norm is not None:
            nn.utils.clip_grads_with_norm_(method.parameters(), clip_norm, norm)
        state.optimizer.step()
        if state.ema is not None:
            state.ema.update(method.inference_model())
        state.step += 1

    def _forward(self, batch: Batch, clock: Clock) -> StepOutput:
        device = self.processes.device
        bf16 = effective_precision(self.config.train.precision, device) == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output: StepOutput = self._wrapped(batch, clock)
        self.guard.check(output.loss, "loss")
        return output._replace(parts={name: part.detach() for name, part in output.parts.items()})


@contextmanager
def advise_without_compile() -> Iterator[None]:
    """Turn what torch.compile cannot do into a `ConfigError` that says how to go on without."""
    try:
        yield
    except RuntimeError as error:
        # By name: to import the compiler takes seconds.
        if not any(of.__module__.startswith(("torch._dynamo.", "torch._inductor.")) for of in type(error).__mro__):
            raise
        reason = first_line(error)
        raise ConfigError(
            f"train.compile: torch cannot compile this step ({reason}); go on with --set train.compile=false, in a new "
            "--out if there is a checkpoint"
        ) from error


def backward_once(forward: Callable[[], StepOutput], *, scale: float, no_sync: NoSync) -> StepOutput:
    """Differentiate the loss: the update rule of methods that have none of their own."""
    output = forward()
    (output.loss * scale).backward()  # type: ignore[no-untyped-call]
    return output
