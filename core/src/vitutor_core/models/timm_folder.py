"""A model as a folder that timm and the Hub read: ``timm.create_model("local-dir:FOLDER", pretrained=True)``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import nn

from vitutor_core.errors import CheckpointError
from vitutor_core.hub import CONFIG, WEIGHTS
from vitutor_core.models.weights import ModelCard, save_model

_OF_ARCHITECTURE = ("architecture", "classifier", "first_conv", "fixed_input_size", "input_size", "num_classes")


def save_timm_folder(folder: Path, model: nn.Module, card: ModelCard) -> None:
    """Write config.json and model.safetensors, from which timm rebuilds ``model`` and its evaluation transform.

    ``model`` was made by ``timm.create_model``. Raises `CheckpointError` if timm does not rebuild it.
    """
    save_model(folder / WEIGHTS, model, card)
    data = {
        "input_size": (len(card.mean), card.image_size, card.image_size),
        "interpolation": card.interpolation,
        "crop_pct": timm_crop(card.image_size, card.crop_ratio),
        "crop_mode": "center",
        "mean": card.mean,
        "std": card.std,
    }
    names: dict[str, Any] = {"label_names": list(card.class_names)} if card.classifies else {}
    # Tag, licence and origin in timm's description are of other weights of this architecture.
    described: Any = model
    described.pretrained_cfg = {
        name: value for name, value in described.pretrained_cfg.items() if name in _OF_ARCHITECTURE
    }
    save_config_for_hf(model, str(folder / CONFIG), names, dict(card.kwargs), data)
    again = timm.create_model(f"local-dir:{folder}", pretrained=True)
    same = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    found = timm.data.resolve_data_config(model=again)
    is_same = all(torch.equal(one, other) for one, other in same)
    if not is_same or any(json.dumps(found[name]) != json.dumps(value) for name, value in data.items()):
        raise CheckpointError(f"{folder}: timm {timm.__version__} does not rebuild {card.name} from it")


def timm_crop(image_size: int, crop_ratio: float) -> float:
    """Return the ratio r for which timm resizes as we do: floor(image_size / r) = round(image_size / crop_ratio).

    With the same ratio it may resize to a pixel less: at 32 pixels and 0.9, to 35 instead of 36.
    """
    side = round(image_size / crop_ratio)
    ratio = image_size / side
    while math.floor(image_size / ratio) < side:
        ratio = math.nextafter(ratio, 0)
    return ratio


def package_of(card: ModelCard) -> str | None:
    """Return the package that must be imported before timm knows the model, if it is none of timm's own."""
    package = timm.model_entrypoint(card.name.partition(".")[0]).__module__.partition(".")[0]
    return None if package == "timm" else package
