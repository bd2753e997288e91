"""Evaluate a finished run, of a student or of a teacher, on images out of its distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vitutor_core.data.folder import class_folders
from vitutor_core.data.mixing import Normalise
from vitutor_core.data.sources import open_source
from vitutor_core.data.streamed import StreamedEvalLoader, eval_transform
from vitutor_core.errors import CheckpointError
from vitutor_core.evaluate.accuracy import evaluate
from vitutor_core.evaluate.robustness import SubsetLogits, corruption_errors
from vitutor_core.models.weights import load_model
from vitutor_core.schema import DataConfig, RuntimeConfig
from vitutor_core.train.distributed import choose_device
from vitutor_core.train.publish import WEIGHTS_NAME


def evaluate_robustness(run: Path, images: Path | None, device_name: str) -> dict[str, Any]:
    """Return the accuracy on ``images``, a folder per class, or the corruption errors on the run's own images.

    Where ``images`` has some of the model's classes, as ImageNet-A and -R have, the model chooses among those: the
    other logits are left out before the maximum is taken. Size, crop and normalisation are the run's.
    """
    device = choose_device(device_name)
    model, card = load_model(run / WEIGHTS_NAME)
    model.to(device).eval()
    data = _data_config(run)
    classes, split = class_folders(images) if images is not None else (card.class_names, open_source(data).evaluation)
    loader = StreamedEvalLoader(
        split,
        np.arange(len(split.labels)),
        eval_transform(data),
        normalise=Normalise(card.mean, card.std, device),
        runtime=RuntimeConfig(),
        device=device,
    )
    if images is None:
        return corruption_errors(model, loader, num_classes=len(classes), mean=card.mean, std=card.std, device=device)
    return evaluate(SubsetLogits(model, card.class_names, classes), loader, num_classes=len(classes), device=device)


def _data_config(run: Path) -> DataConfig:
    path = run / "metrics.json"
    try:
        found = json.loads(path.read_text())["config"]["data"]
    except (OSError, ValueError, KeyError):
        raise CheckpointError(f"{path.absolute()}: not a finished run; train it to its end first") from None
    return DataConfig.from_mapping(found, where=str(path))
