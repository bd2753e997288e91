"""Weights files that explain themselves: safetensors whose metadata hold a model card.

Plain timm loads them (``timm.create_model(name, checkpoint_path=...)``); we also read name, classes and
normalisation from the card, so a teacher needs nothing but its file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vitutor_core.config import Config, identity, nearest
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.files import atomic
from vitutor_core.models.border import check_border
from vitutor_core.runs import weights_file
from vitutor_core.schema import KwargValue, ModelConfig

_KEY = "vitutor"


class ModelCard(Config):
    """How to rebuild a model and feed it. ``mean`` and ``std`` are of pixels in [0, 1]."""

    name: str = identity(help="timm name")
    kwargs: dict[str, KwargValue] = identity(help="arguments of timm.create_model")
    class_names: tuple[str, ...] = identity(help="classes, in the order of the logits")
    image_size: int = identity(help="side of the input, in pixels")
    mean: tuple[float, ...] = identity(help="normalisation: mean per channel")
    std: tuple[float, ...] = identity(help="normalisation: standard deviation per channel")
    method: str = identity(help="what trained it")
    metrics: dict[str, float] = identity({}, help="its evaluation")


def create_model(config: ModelConfig, *, num_classes: int, image_size: int, channels: int) -> nn.Module:
    """Build a timm model for the data at hand, and load the weights that it starts from, if any.

    Raises `ConfigError` for an unknown name or argument, and `CheckpointError` for weights of another model.
    """
    kwargs: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels, **config.kwargs}
    if takes_image_size(config.name):
        kwargs.setdefault("img_size", image_size)
    model = _create(config.name, kwargs, pretrained=config.pretrained)
    check_border(model, config.name, image_size)
    if config.weights is not None:
        _start_from(model, config.weights)
    elif config.start_row is not None:
        raise ConfigError(f"student.start_row: say where '{config.start_row}' was trained: --set student.weights=RUN")
    return model


def create_student(config: ModelConfig, info: DataInfo) -> nn.Module:
    """`create_model` for the classes, the image size and the channels of the data at hand."""
    return create_model(config, num_classes=info.num_classes, image_size=info.image_size, channels=info.channels)


def starting_weights(where: str) -> dict[str, Tensor]:
    """Read the weights to start from: a run folder or a safetensors file; raises `CheckpointError`."""
    path = weights_file(Path(where))
    read_card(path)  # says what is wrong with the file
    return load_file(path)


def _start_from(model: nn.Module, where: str) -> None:
    """Load weights into a model; its classifier stays as it is where theirs is for another number of classes."""
    tensors = starting_weights(where)
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = tuple(f"{name}." for name in ((classifier,) if isinstance(classifier, str) else classifier))
    own = model.state_dict()
    if any(name.startswith(heads) and tensors[name].shape != own[name].shape for name in own.keys() & tensors.keys()):
        tensors = {name: own[name] if name.startswith(heads) else value for name, value in tensors.items()}
    load_strictly(model, tensors, where=str(Path(where).absolute()))


def takes_image_size(name: str) -> bool:
    """Return whether a timm model is built for one input size, as ViTs are and CNNs are not."""
    config = _pretrained_cfg(name)
    return bool(config is not None and config.fixed_input_size)


def pretrained_classes(name: str) -> int | None:
    """Return for how many classes timm's weights of a model are, or None where timm names no weights."""
    config = _pretrained_cfg(name)
    return config.num_classes if config is not None and config.has_weights else None


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write a model's state dict with its card; raises `ResourceError` if it cannot be written."""
    # One key: safetensors writes several in random order, and equal models would be unequal files.
    save_tensors(path, model.state_dict(), {_KEY: card.model_dump_json()})


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors; raises `ResourceError` if they cannot be written."""
    with atomic(path) as partial:
        write_tensors(partial, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors into what `atomic` yields; raises OSError."""
    # safetensors refuses tensors that share storage, which tied weights do
    own = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    try:
        save_file(own, path, metadata=metadata)
    except SafetensorError as error:  # it gives the number of the system's error as text
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error)) from None


def read_card(path: Path) -> ModelCard | None:
    """Return the card of a weights file, or None if it has none; raises `CheckpointError` for no weights file."""
    if not path.is_file():
        raise CheckpointError(f"{path.absolute()}: no such weights file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return ModelCard.model_validate_json(text) if text is not None else None
    except (SafetensorError, OSError):
        raise CheckpointError(
            f"{path.absolute()}: not a safetensors file; pickled checkpoints are not loaded, convert them first"
        ) from None
    except ValidationError:
        raise CheckpointError(f"{path.absolute()}: its model card is not readable") from None


def load_model(path: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild the model of a weights file from its card."""
    card = read_card(path)
    if card is None:
        raise CheckpointError(f"{path.absolute()}: has no model card; name its architecture with teacher.model")
    kwargs = {"num_classes": len(card.class_names), **card.kwargs}
    model = _create(card.name, kwargs, pretrained=False)
    load_strictly(model, load_file(path), where=str(path.absolute()))
    return model, card


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Load a state dict whose names and shapes must match exactly; raises `CheckpointError`."""
    own = module.state_dict()
    missing, unknown = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    shapes = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or unknown or shapes:
        problems = {"missing": missing, "unknown": unknown, "other shape": shapes}
        text = "; ".join(f"{kind}: {', '.join(sorted(names)[:3])}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{where}: weights of another model ({text})")
    module.load_state_dict(tensors)


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over the names and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _create(name: str, kwargs: dict[str, Any], *, pretrained: bool) -> nn.Module:
    _check_name(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        raise ConfigError(f"model {name} with {json.dumps(kwargs)}: {error}") from None
    return model


def _pretrained_cfg(name: str) -> Any:
    _check_name(name)
    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ConfigError(f"model '{name}': {error}") from None


def _check_name(name: str) -> None:
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ConfigError(f"model '{name}' is not registered with timm{nearest(base, timm.list_models())}")
