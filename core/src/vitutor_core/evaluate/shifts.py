"""Evaluate a finished run, of a student or of a teacher, on images out of its distribution."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.build import eval_loader
from vitutor_core.data.sources.folder import class_folders
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import EvalLoader, Split
from vitutor_core.distributed import choose_device
from vitutor_core.errors import DataError
from vitutor_core.evaluate.accuracy import evaluate
from vitutor_core.evaluate.robustness import SubsetLogits, corruption_errors
from vitutor_core.evaluate.sets import Answers, open_set
from vitutor_core.models.weights import load_model
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import DataConfig, RuntimeConfig

Heads = Callable[[Tensor], Mapping[str, Tensor]]
"""Maps images (B, C, H, W) to the logits (B, K) of each head by a prefix of its metrics, empty for the prediction."""
HeadsOf = Callable[[nn.Module, RunRecord], Heads]
"""Returns the heads of a student, given also the record of its run."""


def evaluate_robustness(run: Path, images: Path | None, device_name: str) -> dict[str, Any]:
    """Return the accuracy on ``images``, a folder per class, or the corruption errors on the run's own images.

    Where ``images`` has some of the model's classes, as ImageNet-A and -R have, the model chooses among those: the
    other logits are left out before the maximum is taken. Size, crop and normalisation are the run's.
    """
    device = choose_device(device_name)
    model, card = load_model(RunDir(run).weights)
    model.to(device).eval()
    data = _data_config(run)
    classes, split = class_folders(images) if images is not None else (card.class_names, open_source(data).evaluation)
    loader = _loader(split, data, Normalise(card.mean, card.std, device), device)
    if images is None:
        return corruption_errors(model, loader, num_classes=len(classes), mean=card.mean, std=card.std, device=device)
    return evaluate(SubsetLogits(model, card.class_names, classes), loader, num_classes=len(classes), device=device)


def measure_sets(
    run: Path, package: str, sets: Sequence[str], device: torch.device, heads_of: HeadsOf
) -> dict[str, float]:
    """Return what a finished run of ``package`` reaches on each of ``sets``, see `evaluate.sets`.

    Of each head: ``<head><set>``, its top-1 accuracy in percent, but of ImageNet-C the plain mean of the error in
    percent over all parts, which is called ``mce`` for the prediction, as in `corruption_errors`.
    """
    record = RunRecord.read(run, package)
    model, card = load_model(RunDir(run).weights)
    heads = heads_of(model.to(device).eval(), record)
    data, normalise = _data_config(run), Normalise(card.mean, card.std, device)
    metrics: dict[str, float] = {}
    for name in sets:
        parts = open_set(name, card.class_names, data)
        found = [_accuracies(heads, answers, data, normalise, device) for answers in parts]
        for head in found[0]:
            mean = sum(one[head] for one in found) / len(found)
            if name == "c":
                metrics[f"{head}c" if head else "mce"] = 100 - mean
            else:
                metrics[f"{head}{name}"] = mean
    return metrics


def prediction(model: nn.Module, _: RunRecord) -> Heads:
    """Return the prediction of a student that has no other heads."""
    return lambda images: {"": model(images)}


def _accuracies(
    heads: Heads, answers: Answers, data: DataConfig, normalise: Normalise, device: torch.device
) -> dict[str, float]:
    """Return the top-1 accuracy in percent of each head, in one pass over the images."""
    count = len(answers.split.labels)
    if not count:
        raise DataError(f"{answers.where}: no images")
    positions = dataclasses.replace(answers.split, labels=np.arange(count))
    right, choices = answers.right.to(device), answers.choices.to(device)
    hits: dict[str, Tensor] = {}
    with torch.inference_mode():
        for images, at in _loader(positions, data, normalise, device):
            for head, logits in heads(images.to(device)).items():
                answered = choices[logits[:, choices].argmax(1)]
                found = (answered[:, None] == right[at.to(device)]).any(1).sum()
                hits[head] = hits.get(head, torch.zeros_like(found)) + found
    return {head: 100 * float(found) / count for head, found in hits.items()}


def _loader(split: Split, data: DataConfig, normalise: Normalise, device: torch.device) -> EvalLoader:
    # Resident images are decoded once, and there are 75 passes over corrupted ones.
    everything = np.arange(len(split.labels))
    return eval_loader(split, everything, data, RuntimeConfig(), normalise=normalise, device=device)


def _data_config(run: Path) -> DataConfig:
    return DataConfig.from_mapping(RunRecord.read(run).config.get("data", {}), where=str(RunDir(run).metrics))
