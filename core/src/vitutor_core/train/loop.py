"""The only training loop. It knows no paper: a method's ``forward`` is the whole objective of a step.

Order of a step: load, forward, check the loss, backward, check the gradient norm, clip, update, count.
Order of an epoch: shape the method, train, evaluate, log, save, stop if asked to.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from vitutor_core.config import leaves
from vitutor_core.data.types import Batch, Data, WaitGivenUp, never
from vitutor_core.distributed import Processes, effective_precision
from vitutor_core.errors import InterruptedRun, NonFiniteError
from vitutor_core.evaluate.accuracy import Measured, measure
from vitutor_core.progress import RunProgress
from vitutor_core.schema import RunConfig
from vitutor_core.train import optim
from vitutor_core.train.memory import advise_for_evaluation
from vitutor_core.train.method import Clock, Method
from vitutor_core.train.run_folder import RunFolder
from vitutor_core.train.signals import StopRequest
from vitutor_core.train.state import TrainState
from vitutor_core.train.track import Facts, Tracking
from vitutor_core.train.update import Updater


class Fitted(NamedTuple):
    """What `fit` returns: the last evaluation, the averaged student if there is one, and the time spent before."""

    measured: Measured
    averaged: nn.Module | None
    seconds_before: float
    """Of the processes that trained up to the checkpoint that this one resumed."""


def fit(
    method: Method,
    data: Data,
    config: RunConfig,
    *,
    run: RunFolder,
    processes: Processes,
    identity: dict[str, Any],
    tracking: Tracking,
    name: str,
) -> Fitted:
    """Train ``method`` to its end.

    Resumes from the newest checkpoint of ``run``, bit for bit. Raises `InterruptedRun` after saving, when asked to
    stop, and `NonFiniteError` before any weight is harmed.
    """
    updates, epochs = data.train.steps_per_epoch, config.train.epochs
    clock = Clock(0, updates, updates * epochs)
    method.to(processes.device)
    state = TrainState.build(method, config, run.latest_checkpoint(identity), clock, identity)
    run.warn_if_short(state.size(method))
    measured = Measured(state.last_metrics, state.last_correct)
    updater = Updater(method, config, processes, state)
    guard, meter = updater.guard, updater.meter
    probe = _probe_images(data)
    every = config.runtime
    save = partial(state.save, run, method, meter, processes)
    facts = Facts(run.files.tracking, name, {path: value for path, _, value in leaves(config)}, state.step)
    tracking.start(facts, enabled=processes.is_main)

    with (
        StopRequest(run.path) as stop,
        RunProgress(f"{config.student.name}, updates", clock.total_steps, done=state.step) as progress,
    ):
        if state.step:
            progress.say(f"goes on from update {state.step:,} of {clock.total_steps:,}")
        # One of several processes cannot leave the others alone: it waits on, until the workers' time is up.
        give_up = stop.__bool__ if processes.world_size == 1 else never
        for epoch in range(state.step // updates, epochs):
            updater.begin_epoch(Clock(epoch * updates, updates, clock.total_steps))
            waited = time.monotonic()
            micro_batches: tuple[Batch, ...] = ()
            batches = data.train.epoch(epoch, start_step=state.step - epoch * updates, give_up=give_up)
            try:
                with suppress(WaitGivenUp):
                    for micro_batches in batches:
                        meter.waited(time.monotonic() - waited)
                        updater.update(micro_batches, Clock(state.step, updates, clock.total_steps))
                        is_last, is_logged = state.step % updates == 0, state.step % every.log_every_steps == 0
                        if is_logged and processes.is_main:
                            stop.look_for_file()
                        if is_last or is_logged:
                            guard.raise_if_bad()
                        if is_logged or progress.is_due():
                            meter.read()
                            progress.update(state.step, meter.note())
                        if is_logged:
                            tracking.log(
                                state.step, {"step_loss": meter.latest, "lr": optim.highest_lr(state.optimizer)}
                            )
                        if not is_last and _must_stop(stop, state, every.log_every_steps, processes):
                            break
                        waited = time.monotonic()
                guard.raise_if_bad()
                _stop_if_left(state, epoch * updates, updates, stop, save)
            except NonFiniteError as error:
                state.write_crash(run, meter, micro_batches)
                step = min(state.step, clock.total_steps - 1)  # a GPU notices the last one when it has been counted
                raise NonFiniteError(f"{error}; vitutor replay {run.path} --step {step} shows the step") from None

            meter.read()
            progress.update(state.step, meter.note())
            line: dict[str, Any] = {"epoch": epoch, "step": state.step, **meter.epoch_line()}
            line["lr"] = optim.highest_lr(state.optimizer)
            if (epoch + 1) % every.eval_every_epochs == 0 or epoch + 1 == epochs:
                report = method.report(probe.to(processes.device))
                with advise_for_evaluation(config):
                    found = _evaluate(method, state.ema, data, config, processes)
                measured = Measured(found.metrics | report.metrics, found.correct)
                line |= measured.metrics
                run.keep_pictures(epoch + 1, report.pictures)
            state.end_epoch(line, measured)
            tracking.log(state.step, {key: value for key, value in line.items() if key not in ("step", "lr")})
            progress.epoch(_summary(line, epochs), last=epoch + 1 == epochs)
            must_stop = processes.any(bool(stop))
            if (epoch + 1) % every.checkpoint_every_epochs == 0 or epoch + 1 == epochs or must_stop:
                save()
            if must_stop and epoch + 1 < epochs:
                raise _stopped(f"after epoch {epoch + 1}", stop)
    return Fitted(measured, state.ema.module if state.ema is not None else None, state.seconds)


def _stop_if_left(state: TrainState, begun: int, updates: int, stop: StopRequest, save: Callable[[], None]) -> None:
    """End a run that has left the epoch that began at step ``begun``; without a step since then, nothing is saved."""
    if state.step == begun + updates:
        return
    if state.step > begun:
        save()
    raise _stopped(f"at step {state.step}", stop)


def _stopped(where: str, stop: StopRequest) -> InterruptedRun:
    return InterruptedRun(f"stopped {where}; run it again to go on", stop.signal_number or signal.SIGTERM)


def _must_stop(stop: StopRequest, state: TrainState, interval: int, processes: Processes) -> bool:
    """Ask this process alone every step; several processes must agree, which costs a sync, so once an interval."""
    return (processes.world_size == 1 or state.step % interval == 0) and processes.any(bool(stop))


def _evaluate(method: Method, ema: ModelEmaV3 | None, data: Data, config: RunConfig, processes: Processes) -> Measured:
    options: dict[str, Any] = {
        "num_classes": data.info.num_classes,
        "device": processes.device,
        "precision": effective_precision(config.train.precision, processes.device),
    }
    if not method.traits.classifies:
        return Measured({}, {})
    averaged = ema.module if ema is not None else None
    return measure(method.inference_model(), averaged, data.evaluation, **options)


def _probe_images(data: Data) -> torch.Tensor:
    """Return the first evaluation batch, at most 64 images, for `Method.report`."""
    images, _ = next(iter(data.evaluation))
    return images[:64].cpu()


def _summary(line: dict[str, Any], epochs: int) -> str:
    accuracy = f", top-1 {line['top1']:.2f} %" if "top1" in line else ""
    return (
        f"epoch {line['epoch'] + 1}/{epochs}: loss {line['train_loss']:.4f}{accuracy}, "
        f"{line['images_per_s']:.0f} images/s, data wait {line['data_wait']:.1%}"
    )
