"""vitutor convert: checkpoints that others published, as safetensors with a model card.

This is the only place that reads a pickle, and torch builds nothing but tensors and plain values from it.
"""

from __future__ import annotations

import argparse
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vitutor_core.cli import options
from vitutor_core.config import apply_settings, nearest
from vitutor_core.errors import CheckpointError, ConfigError, first_line
from vitutor_core.schema import DataConfig, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from vitutor_core.models.convert import Classes

_KEYS = ("state_dict_ema", "state_dict", "model", "module", "model_state_dict", "model_ema")
"""Under which checkpoints hold the weights, in the order in which they are looked for."""
_DEPTH = 4
"""How deep in a checkpoint the weights may lie; a pickle can hold itself."""
_SHARED = 4
"""How many times the size of the file its tensors may have: some checkpoints hold a tensor under several names."""


@click.command("convert")
@click.argument("file", type=options.PathOption(exists=True, dir_okay=False))
@click.option("--to", type=options.PathOption(dir_okay=False), required=True, help="The safetensors file to write.")
@click.option("--model", "name", metavar="NAME", help="Architecture, by timm's name.  [default: by names and shapes]")
@click.option("--set", "settings", multiple=True, metavar="kwargs.NAME=VALUE", help="An argument of --model.")
@click.option("--key", help="Which part of the checkpoint, e.g. model_ema.  [default: the first of the usual ones]")
@click.option("--image-size", type=click.IntRange(4, 8192), help="Side of the input.  [default: that of the file]")
@click.option("--classes", metavar="LIST", help="Classes in the order of its logits, as data.class_list.")
@click.option("--source", help="Data that it was trained on, as data.source: classes and normalisation.")
@click.option("--beside", type=options.PathOption(dir_okay=False), help="Keep a decoder or projector there.")
def convert(
    file: Path,
    to: Path,
    name: str | None,
    settings: tuple[str, ...],
    key: str | None,
    image_size: int | None,
    classes: str | None,
    source: str | None,
    beside: Path | None,
) -> None:
    """Make a published checkpoint, .pth or .safetensors, a weights file that the other commands read.

    It knows how the authors of DeiT, Swin, CvT, T2T-ViT and RedNet name their tensors, and what the installed papers
    add. Every change is printed: a prefix that is removed, positions that are resampled, what is left out. Whatever
    else does not fit is refused. The classes are ImageNet's unless --classes or --source names others.
    """
    if settings and name is None:
        raise ConfigError("--set: it changes an argument of --model; name that, too")
    if to.suffix != ".safetensors" or (beside is not None and beside.suffix != ".safetensors"):
        raise ConfigError(f"{to if to.suffix != '.safetensors' else beside}: safetensors are written; let it end so")
    paths = {"FILE": file, "--to": to} | ({} if beside is None else {"--beside": beside})
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError(f"{', '.join(paths)}: two are the same file, which would be overwritten; name another")
    from vitutor_core.models.convert import convert as rebuilt
    from vitutor_core.models.weights import save_model, save_tensors

    asked = _model(name, settings)
    tensors, notes = read_checkpoint(file, key)
    found = rebuilt(
        tensors,
        where=str(file.absolute()),
        name=None if asked is None else asked.name,
        kwargs=None if asked is None else asked.kwargs,
        image_size=image_size,
        classes=_classes(classes, source),
    )
    if beside is not None and not found.beside:
        raise ConfigError(f"--beside: {file} holds nothing but the model")
    save_model(to, found.model, found.card)
    if beside is not None:
        save_tensors(beside, found.beside)
    for note in (*notes, *found.notes):
        click.echo(note)
    click.echo(f"{to}: {sum(value.numel() for value in found.model.parameters()):,} parameters")
    if beside is not None:
        click.echo(f"{beside}: {len(found.beside)} tensors")


def read_checkpoint(file: Path, key: str | None = None) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the tensors by name of a safetensors file or a pickled checkpoint, and what is to be said of it.

    Raises `CheckpointError` for whatever is neither, or holds other objects than tensors, text and numbers.
    """
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        from vitutor_core.models.weights import read_card

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
    import torch

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
    import torch

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


def _model(name: str | None, settings: tuple[str, ...]) -> ModelConfig | None:
    if name is None:
        return None
    values: dict[str, Any] = {"name": name}
    apply_settings(values, settings, ModelConfig)
    return ModelConfig.from_mapping(values, where="--set")


def _classes(listed: str | None, source: str | None) -> Classes | None:
    if listed is None and source is None:
        return None
    from vitutor_core.data.sources.classes import read_class_list
    from vitutor_core.data.sources.open import open_source
    from vitutor_core.models.convert import Classes

    names = () if listed is None else read_class_list(listed)
    if source is None:
        return Classes(names)
    data = open_source(DataConfig(source=source, image_size=224))
    return Classes(names or data.class_names, data.mean, data.std)
