"""Evaluate a finished run, of a student or of a teacher, on images out of its distribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitutor_core.data.folder import class_folders
from vitutor_core.data.mixing import Normalise
from vitutor_core.data.resident import ResidentEvalLoader, load_eval
from vitutor_core.data.sources import open_source
from vitutor_core.data.streamed import StreamedEvalLoader, eval_transform
from vitutor_core.data.types import EvalLoader, Split
from vitutor_core.distributed import choose_device
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.accuracy import evaluate
from vitutor_core.evaluate.robustness import SubsetLogits, corruption_errors
from vitutor_core.models.weights import load_model
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import DataConfig, RuntimeConfig


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


def head_accuracies(
    heads: Callable[[Tensor], Mapping[str, Tensor]],
    run: Path,
    images: Path,
    known: Sequence[str],
    normalise: Normalise,
    device: torch.device,
) -> dict[str, float]:
    """Return the top-1 accuracy in percent of each head on ``images``, a folder per class, in one pass.

    ``heads`` maps images (B, C, H, W) to logits (B, K) by name, whose classes are ``known``; a head chooses among the
    classes that the folder has.
    """
    classes, split = class_folders(images)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ConfigError(f"{images}: the model does not know {', '.join(unknown[:3])}")
    chosen = torch.tensor([list(known).index(name) for name in classes], device=device)
    right: dict[str, Tensor] = {}
    with torch.inference_mode():
        for batch, labels in _loader(split, _data_config(run), normalise, device):
            for name, logits in heads(batch.to(device)).items():
                hits = (logits[:, chosen].argmax(1) == labels.to(device)).sum()
                right[name] = right.get(name, torch.zeros((), device=device)) + hits
    return {name: 100 * float(count) / len(split.labels) for name, count in right.items()}


def _loader(split: Split, data: DataConfig, normalise: Normalise, device: torch.device) -> EvalLoader:
    runtime, everything = RuntimeConfig(), np.arange(len(split.labels))
    if data.loader == "resident":  # there are 75 passes over corrupted images
        pixels = load_eval(split, everything, data, device=device)
        labels = torch.from_numpy(split.labels).to(device)
        return ResidentEvalLoader(pixels, labels, runtime.eval_batch_size, normalise)
    transform = eval_transform(data)
    return StreamedEvalLoader(split, everything, transform, normalise=normalise, runtime=runtime, device=device)


def _data_config(run: Path) -> DataConfig:
    return DataConfig.from_mapping(RunRecord.read(run).config.get("data", {}), where=str(RunDir(run).metrics))
