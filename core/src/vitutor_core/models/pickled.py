"""Read a checkpoint that others published, as tensors by name.

This is the only place that reads a pickle, and torch builds nothing but tensors and plain values from it.
"""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vitutor_core.config import nearest
from vitutor_core.errors import CheckpointError, ConfigError, first_line
from vitutor_core.models.weights import read_card

_KEYS = ("state_dict_ema", "state_dict", "model", "module", "model_state_dict", "model_ema")
"""Under which checkpoints hold the weights, in the order in which they are looked for."""
_DEPTH = 4
"""How deep in a checkpoint the weights may lie; a pickle can hold itself."""
_SHARED = 4
"""How many times the size of the file its tensors may have: some checkpoints hold a tensor under several names."""


def read_checkpoint(file: Path, key: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors by name of a safetensors file or a pickled checkpoint, and what is to be said of it.

    Raises `CheckpointError` for whatever is neither, or holds other objects than tensors, text and numbers.
    """
    if file.suffix == ".safetensors":
        read_card(file)  # says what is wrong with the file
        found: Any = load_file(file)
    else:
        found = _unpickled(file)
    keys: list[str] = []
    while (inner := _inner(found, key if not keys else None, file)) is not None:
        keys.append(inner)
        if len(keys) > _DEPTH:
            raise CheckpointError(f"{file.absolute()}: no tensors within {' / '.join(keys)}; is it a checkpoint?")
        found = found[inner]
    notes = [f"read from {' / '.join(keys)}"] if keys else []
    return _checked(found, file), tuple(notes)


def _unpickled(file: Path) -> Any:
    try:
        _check_stored(file)
        # Training scripts store their arguments beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of a damaged or hostile file it may be any
        raise CheckpointError(
            f"{file.absolute()}: not a checkpoint of tensors and plain values ({_reason(error)})"
        ) from None


def _check_stored(file: Path) -> None:
    """Raise `CheckpointError` for an archive that grows when it is read; torch compresses nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise CheckpointError("it is compressed, which torch's checkpoints are not")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise CheckpointError("its parts overlap, which those of torch's checkpoints do not")


def _reason(error: Exception) -> str:
    """Say what was wrong, without torch's advice to run the code that a file holds."""
    text = " ".join(str(error).split())
    _, refused, why = text.partition("WeightsUnpickler error: ")
    if refused:
        why = why.partition(" Check the documentation")[0].removeprefix("Unsupported global: GLOBAL ")
        name, is_code, _ = why.partition(" was not an allowed global")
        return f"it holds code: {name}" if is_code else why
    return first_line(error).removesuffix(".")[:200]


def _inner(found: Any, key: str | None, file: Path) -> str | None:
    """Return the key under which the weights lie, or None where ``found`` is what holds them."""
    if not isinstance(found, Mapping):
        return None
    if key is not None:
        if not isinstance(found.get(key), Mapping):
            parts = [str(name) for name, value in found.items() if isinstance(value, Mapping)]
            raise ConfigError(f"--key {key}: {file} has {', '.join(parts) or 'no parts'}{nearest(key, parts)}")
        return key
    return next((name for name in _KEYS if isinstance(found.get(name), Mapping)), None)


def _checked(found: Any, file: Path) -> dict[str, Tensor]:
    """Return what is a state dict: names with dense tensors whose values are finite and in the file."""
    where = file.absolute()
    if not isinstance(found, Mapping) or not found or not all(isinstance(name, str) for name in found):
        raise CheckpointError(f"{where}: holds no tensors by name; say with --key where they are")
    others = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(f"{where}: not tensors: {', '.join(others[:3])}; say with --key where they are")
    left = _SHARED * file.stat().st_size
    for name, value in found.items():
        left -= value.numel() * value.element_size()
        if value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
            raise CheckpointError(f"{where}: {name} is not a dense tensor of real numbers")
        if left < 0:
            raise CheckpointError(f"{where}: {name} is larger than the file")
        if not bool(value.isfinite().all()):
            raise CheckpointError(f"{where}: {name} has values that are not finite")
    return dict(found)
