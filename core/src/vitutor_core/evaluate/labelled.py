"""Evaluate a trained model on other images than those that it was evaluated on: another split or source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from vitutor_core.config import nearest
from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.build import eval_loader
from vitutor_core.data.sources import splits
from vitutor_core.data.sources.folder import class_folders
from vitutor_core.data.sources.locate import locate, require_folder
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Split
from vitutor_core.distributed import choose_device, effective_precision
from vitutor_core.errors import ConfigError, DataError, named
from vitutor_core.evaluate.accuracy import Measured, measure
from vitutor_core.models.weights import ModelCard, load_model
from vitutor_core.schema import DataConfig, RunConfig, RuntimeConfig


def evaluate_elsewhere(weights: Path, config: RunConfig, *, source: str | None, split: str | None) -> Measured:
    """Measure the accuracy of a weights file that was trained by ``config``, on chosen images; see `_measured`."""
    chosen = {"source": unless_own(source, config.data), "split": split}
    return _measured(weights, load_model(weights), config.data, config.runtime, config.train.precision, **chosen)


def evaluate_file(weights: Path, *, source: str, split: str | None) -> Measured:
    """Measure the accuracy of a weights file of which nothing but its card is known; see `_measured`."""
    model, card = load_model(weights)
    return _measured(
        weights, (model, card), data_for(card, source), RuntimeConfig(), "bf16", source=source, split=split
    )


def data_for(card: ModelCard, source: str) -> DataConfig:
    """Return how the images of ``source`` are prepared for a model of which nothing but its card is known."""
    return DataConfig(
        source=source,
        image_size=card.image_size,
        crop_ratio=card.crop_ratio,
        interpolation=card.interpolation,
        loader="streamed",
    )


def unless_own(source: str | None, config: DataConfig) -> str | None:
    """Return None for the source of ``config``, so that its evaluation split is opened and not all its images."""
    if source is None or source == config.source:
        return None
    if source.startswith("folder:") and config.source.startswith("folder:"):
        asked = locate(source.removeprefix("folder:"))
        with suppress(DataError):  # of a user who is not known here
            if asked.resolve() == locate(config.source.removeprefix("folder:")).resolve():
                return None
    return source


def _measured(
    weights: Path,
    loaded: tuple[nn.Module, ModelCard],
    data: DataConfig,
    runtime: RuntimeConfig,
    precision: Literal["fp32", "bf16"],
    *,
    source: str | None,
    split: str | None,
) -> Measured:
    """Measure the accuracy of a model on images that ``source`` and ``split`` choose as `labelled_images` says.

    Raises `ConfigError` if the model is not a classifier.
    """
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    device = choose_device(runtime.device)
    model, card = loaded
    if not card.classifies:
        raise ConfigError(f"{weights.absolute()}: its head is not trained, so that it has no accuracy; fine-tune it")
    images = labelled_images(data, card.class_names, source=source, split=split)
    normalise = Normalise(card.mean, card.std, device)
    everything = np.arange(len(images.labels))
    loader = eval_loader(images, everything, data, runtime, normalise=normalise, device=device)
    options: dict[str, Any] = {"num_classes": len(card.class_names), "device": device}
    return measure(model.to(device), None, loader, precision=effective_precision(precision, device), **options)


def labelled_images(
    config: DataConfig, class_names: Sequence[str], *, source: str | None = None, split: str | None = None
) -> Split:
    """Open a split of ``source``, whose labels become positions in ``class_names`` by the names of its classes.

    ``config`` is what the model was trained on, and where neither is given, its evaluation split is opened. Of its own
    source, ``train`` is all that a holdout leaves. Another source is taken as it is, without class list or holdout; a
    folder needs no training split, and may hold the folders of the classes alone.

    Raises `ConfigError` if there is no such split, or a class that is not among ``class_names``.
    """
    if source is None and split is None:
        names, found = _opened(config, "")
    elif source is None:
        wanted = split or ""
        own = {} if wanted.casefold() in splits.TRAINING else {"holdout": None, "eval_split": wanted}
        remedy = "without --split, the images that the run held out are evaluated" if config.holdout is not None else ""
        with named("--split", remedy):
            names, found = _opened(config.model_copy(update=own), wanted)
    elif source.startswith("folder:"):
        names, found = class_folders(_split_folder(locate(source.removeprefix("folder:")), split))
    else:
        plain = DataConfig(source=source, image_size=config.image_size)
        own = {} if split is None or split.casefold() in splits.TRAINING else {"eval_split": split}
        names, found = _opened(plain.model_copy(update=own), split or "")
    indices = {name: index for index, name in enumerate(class_names)}
    unknown = [name for name in names if name not in indices]
    if unknown:
        hint = nearest(unknown[0], class_names)
        raise ConfigError(f"{source or config.source}: the model does not know the class '{unknown[0]}'{hint}")
    return dataclasses.replace(found, labels=np.array([indices[name] for name in names], dtype=np.int64)[found.labels])


def _opened(config: DataConfig, split: str) -> tuple[Sequence[str], Split]:
    source = open_source(config)
    return source.class_names, source.train if split.casefold() in splits.TRAINING else source.evaluation


def _split_folder(folder: Path, split: str | None) -> Path:
    """Return the folder of a split: the one that is asked for, else the first to evaluate on, else ``folder``."""
    require_folder(folder, "a folder per class, or such folders in train/, val/ or test/")
    found = {entry.name.casefold(): entry for entry in sorted(folder.iterdir()) if entry.is_dir()}
    if split is not None:
        if split.casefold() not in found:
            known = [entry.name for name, entry in found.items() if splits.is_split(name)]
            rest = f"{nearest(split, known)}; splits: {', '.join(known)}"
            none = ", nor other splits; without --split, all of its images are evaluated"
            raise ConfigError(f"--split: {folder} has no '{split}'{rest if known else none}")
        return found[split.casefold()]
    return next((found[name] for name in (*splits.EVALUATION, *splits.TRAINING) if name in found), folder)
