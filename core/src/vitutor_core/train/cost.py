"""What a run costs before it is trained: the operations of all its updates, and the seconds of one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.train.method import Clock, Method, StepOutput
from vitutor_core.train.update import backward_once

_COUNTED = 2
"""Images whose operations are counted: BatchNorm needs two."""
_TIMED = 32
"""Images of a timed step, at most; a step of more takes proportionally longer."""


class Length(NamedTuple):
    """How long a run is: epochs, updates in each, images in each update."""

    epochs: int
    updates: int
    batch: int


def training_flops(method: Method, info: DataInfo, length: Length) -> float:
    """Count the FLOPs of all updates of a run, forward and backward, those of frozen teachers included.

    One multiply-add counts as two; element-wise work, the optimiser and evaluation do not count. Where parts of the
    method leave after some epochs, the later updates are counted without them. The method stays as it is.
    """
    method = copy.deepcopy(method)
    total, per_image = 0.0, None
    for epoch in range(length.epochs):
        clock = Clock(epoch * length.updates, length.updates, length.epochs * length.updates)
        if method.on_epoch(clock) or per_image is None:
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                _step(method, info, clock, _COUNTED)()
            per_image = counter.get_total_flops() / _COUNTED
        total += per_image * length.updates * length.batch
    return total


def step_seconds(method: Method, info: DataInfo, length: Length, device: torch.device, *, bf16: bool) -> float:
    """Return the seconds of one update of the first epoch, without data, optimiser and evaluation.

    With ``bf16`` it is made as a run of that precision makes it.
    """
    images = min(length.batch, _TIMED)
    method = copy.deepcopy(method).to(device)
    step = _step(method, info, Clock(0, length.updates, length.epochs * length.updates), images, bf16=bf16)
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # what the first step makes once does not count
    repeats, started = 0, time.monotonic()
    while repeats < 2 or (repeats < 20 and time.monotonic() - started < 0.1):
        step()
        repeats += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.monotonic() - started) / repeats * length.batch / images


def _step(method: Method, info: DataInfo, clock: Clock, count: int, *, bf16: bool = False) -> Callable[[], None]:
    """Return one update's passes over black images."""
    device = next(method.parameters()).device
    side = info.image_size
    batch = Batch(
        torch.zeros(count, info.channels, side, side, device=device),
        torch.full((count, info.num_classes), 1 / info.num_classes, device=device),
        torch.arange(count, device=device),
    )
    method.train()
    rule = method.update_rule() or backward_once

    def run() -> None:
        def forward() -> StepOutput:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                output: StepOutput = method(prepared, clock)
            return output

        with torch.random.fork_rng(devices=[]):
            prepared = method.prepare(batch, clock)
            rule(forward, scale=1.0, no_sync=nullcontext)
        method.zero_grad()

    return run
