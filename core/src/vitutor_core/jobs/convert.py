"""Make a checkpoint that others published a weights file with a model card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitutor_core.config import apply_settings
from vitutor_core.data.sources.classes import read_class_list
from vitutor_core.data.sources.open import open_source
from vitutor_core.errors import ConfigError
from vitutor_core.models.convert import Classes, convert
from vitutor_core.models.pickled import read_checkpoint
from vitutor_core.models.weights import save_model, save_tensors
from vitutor_core.schema import DataConfig, ModelConfig


def convert_file(
    file: Path,
    to: Path,
    *,
    name: str | None,
    settings: tuple[str, ...],
    key: str | None,
    image_size: int | None,
    classes: str | None,
    source: str | None,
    beside: Path | None,
) -> Iterator[str]:
    """Write the model of ``file`` to ``to``, and what else it holds to ``beside``; yield what to tell the user.

    ``name`` and ``settings`` are the model and its arguments, ``key`` the part of the checkpoint; ``classes``, a list,
    or ``source`` say what its logits mean.
    """
    if settings and name is None:
        raise ConfigError("--set: it changes an argument of --model; name that, too")
    if to.suffix != ".safetensors" or (beside is not None and beside.suffix != ".safetensors"):
        raise ConfigError(f"{to if to.suffix != '.safetensors' else beside}: safetensors are written; let it end so")
    paths = {"FILE": file, "--to": to} | ({} if beside is None else {"--beside": beside})
    if len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError(f"{', '.join(paths)}: two are the same file, which would be overwritten; name another")
    asked = _model(name, settings)
    tensors, notes = read_checkpoint(file, key)
    found = convert(
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
    yield from (*notes, *found.notes)
    yield f"{to}: {sum(value.numel() for value in found.model.parameters()):,} parameters"
    if beside is not None:
        yield f"{beside}: {len(found.beside)} tensors"


def _model(name: str | None, settings: tuple[str, ...]) -> ModelConfig | None:
    if name is None:
        return None
    values: dict[str, Any] = {"name": name}
    apply_settings(values, settings, ModelConfig)
    return ModelConfig.from_mapping(values, where="--set")


def _classes(listed: str | None, source: str | None) -> Classes | None:
    if listed is None and source is None:
        return None
    names = () if listed is None else read_class_list(listed)
    if source is None:
        return Classes(names)
    data = open_source(DataConfig(source=source, image_size=224))
    return Classes(names or data.class_names, data.mean, data.std)
