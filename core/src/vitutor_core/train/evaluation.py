"""Measure a finished run from its published weights: accuracy, calibration, size, and the method's own figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from vitutor_core.data.build import build_data
from vitutor_core.data.types import Data
from vitutor_core.distributed import choose_device, effective_precision
from vitutor_core.evaluate.accuracy import Measured, measure
from vitutor_core.evaluate.complexity import complexity, throughput
from vitutor_core.models.weights import load_model, load_strictly
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train.memory import advise_for_evaluation
from vitutor_core.train.method import Clock, Method

if TYPE_CHECKING:
    from vitutor_core.train.session import BuildMethod  # a change of how runs train leaves evaluations as they are


def evaluate_run(
    run: Path, record: RunRecord, schema: type[RunConfig], build: BuildMethod, *, speed: bool = False
) -> Measured:
    """Measure a finished run, whose record is ``record``.

    A model that is not a classifier yet has no accuracy. ``speed`` measures images per second as well.
    """
    config: RunConfig = schema.from_mapping(record.config, where=str(RunDir(run).metrics))
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    device = choose_device(config.runtime.device)
    model, card = load_model(RunDir(run).weights)
    model.to(device)
    metrics, correct, answers = Measured({}, {})
    if "top1" in record.metrics or record.own_metrics:
        data = build_data(config, device=device)
        try:
            with advise_for_evaluation(config):
                metrics, correct, answers = _accuracy(run, model, record, config, data, device)
                if record.own_metrics:
                    method = _method(run, model, config, build, data).to(device)
                    metrics |= method.report(evaluation=data.evaluation).metrics
        finally:
            data.train.close()
    metrics |= complexity(model, card.image_size, channels=len(card.mean))
    if speed:
        size, batch = card.image_size, config.runtime.eval_batch_size
        metrics["images_per_s"] = throughput(model, size, device=device, batch_size=batch)
    return Measured(metrics, correct, answers)


def _accuracy(
    run: Path, model: nn.Module, record: RunRecord, config: RunConfig, data: Data, device: torch.device
) -> Measured:
    if "top1" not in record.metrics:  # the head is not trained
        return Measured({}, {})
    options: dict[str, Any] = {
        "num_classes": data.info.num_classes,
        "device": device,
        "precision": effective_precision(config.train.precision, device),
    }
    average = RunDir(run).ema_weights
    averaged = load_model(average)[0].to(device) if average.exists() else None
    return measure(model, averaged, data.evaluation, **options)


def _method(run: Path, model: nn.Module, config: RunConfig, build: BuildMethod, data: Data) -> Method:
    """Rebuild the method as it was after the last epoch."""
    method = build(config, data.info)
    updates = data.train.steps_per_epoch
    method.on_epoch(Clock((config.train.epochs - 1) * updates, updates, config.train.epochs * updates))
    files = RunDir(run)
    if files.method.exists():
        load_strictly(method, load_file(files.method), where=str(files.method))
    else:
        load_strictly(method.inference_model(), model.state_dict(), where=str(files.weights))
    return method
