"""Open the data source that a config names."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np

from vitutor_core.config import nearest
from vitutor_core.data.sources.cifar import CIFAR, cifar_source
from vitutor_core.data.sources.classes import read_class_list, restrict
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.domainnet import domainnet_source
from vitutor_core.data.sources.folder import folder_source, training_folder
from vitutor_core.data.sources.locate import locate, shorten
from vitutor_core.data.sources.parquet import hub_source, parquet_source
from vitutor_core.data.sources.scenes import scene_digits_source
from vitutor_core.data.sources.subsets import hold_out
from vitutor_core.data.sources.vision import torchvision_source
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig


def _timm(name: str, config: DataConfig) -> Source:
    """Open a data set by the name that ``timm.data.create_dataset`` takes, with our own readers.

    timm's would unpickle CIFAR, and shift the labels of a folder where a class is missing in val.
    """
    prefix, _, rest = name.partition("/")
    if locate(name).is_dir():
        return folder_source(locate(name), config)
    readers = {"hfds": hub_source, "torch": torchvision_source}
    if prefix in ("hfids", "tfds", "wds"):
        raise ConfigError(f"data.source: timm:{name} can only be streamed, without subsets; use timm:hfds/NAME")
    if prefix not in readers or not rest:
        hint = nearest(prefix, readers)
        raise ConfigError(f"data.source: no folder {locate(name)}, and no reader '{prefix}'{hint}; use hfds/ or torch/")
    return readers[prefix](rest, config)


_EMBEDDED: dict[str, Callable[[], Source]] = {"digits": digits_source, "scene_digits": scene_digits_source}
_OPENERS: dict[str, Callable[[str, DataConfig], Source]] = {
    "torchvision": torchvision_source,
    "domainnet": lambda domain, _: domainnet_source(domain),
    "folder": lambda path, config: folder_source(locate(path), config),
    "hub": hub_source,
    "parquet": lambda path, config: parquet_source(locate(path), f"parquet:{locate(path).name}", config),
    "timm": _timm,
}
_READ_BY = {
    "eval_split": ("folder", "hub", "parquet", "timm"),
    "image_column": ("hub", "parquet"),
    "label_column": ("hub", "parquet"),
}
_VALID = (
    *_EMBEDDED,
    *CIFAR,
    "torchvision:NAME",
    "domainnet:DOMAIN",
    "folder:PATH",
    "hub:OWNER/NAME",
    "parquet:PATH",
    "timm:NAME",
)
ANNOTATED = ("scenes", "coco:FOLDER")
"""Sources with boxes and masks, which `vitutor_core.data.detection.open` opens."""


def open_source(config: DataConfig) -> Source:
    """Open ``config.source``, download it if need be, and check its labels; no image is decoded.

    With ``config.holdout``, a part of the training images takes the place of the evaluation split.
    ``config.class_list`` keeps some of the classes. With ``config.train_from``, the training images are those of that
    folder, and evaluation stays as it is.
    A class without an evaluation image is a warning. Raises `ConfigError` if no such source exists, and `DataError` if
    the data is missing or damaged, or lacks training images of a class.
    """
    source = _open(config)
    for note in source.notes:
        warnings.warn(note, stacklevel=2)
    _check_range(source.train, source)
    if config.holdout is not None:
        source = hold_out(source, config.holdout, config.holdout_seed)
    if config.class_list is not None:
        source = restrict(source, read_class_list(config.class_list))
    if config.train_from is not None:
        source = dataclasses.replace(source, train=training_folder(locate(config.train_from), source.class_names))
    _check_labels(source, config.source)
    return source


def _open(config: DataConfig) -> Source:
    name = config.source
    kind, colon, argument = name.partition(":")
    for field, kinds in _READ_BY.items():
        if getattr(config, field) is not None and kind not in kinds:
            raise ConfigError(f"data.{field}: {name} has no choice of it; it is for {', '.join(kinds)}")
    if name in _EMBEDDED:
        return _EMBEDDED[name]()
    if name in CIFAR:
        return cifar_source(name, config)
    if kind in _OPENERS and argument:
        return _OPENERS[kind](argument, config)
    hint = f"; did you mean 'folder:{name}'?" if _is_folder(name) else nearest(kind + colon, _VALID)
    valid = f"valid: {', '.join(_VALID)}; for detection: {', '.join(ANNOTATED)}"
    raise ConfigError(f"data.source: no source '{name}'{hint}; {valid}")


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and locate(name).is_dir()
    except (OSError, DataError):  # too long for a path, or in no one's home
        return False


def _check_labels(source: Source, name: str) -> None:
    without_training = _absent(source.train, source, f"{name}, training split")
    if without_training:
        raise DataError(f"{name}: no training images of {shorten(without_training)}; add images or remove the class")
    without_evaluation = _absent(source.evaluation, source, f"{name}, evaluation split")
    if without_evaluation:
        warnings.warn(f"{name}: no evaluation images of {shorten(without_evaluation)}", stacklevel=3)


def _absent(split: Split, source: Source, name: str) -> list[str]:
    """Return the names of the classes that have no image in ``split``."""
    if len(split.labels) == 0:
        raise DataError(f"{name}: it has no images")
    _check_range(split, source)
    return [source.class_names[label] for label in np.setdiff1d(np.arange(len(source.class_names)), split.labels)]


def _check_range(split: Split, source: Source) -> None:
    count = len(source.class_names)
    if len(split.labels) and (split.labels.min(), split.labels.max()) == (1, count):
        raise DataError(f"{split.where(0)}: the labels are 1 to {count}, not 0 to {count - 1}; subtract 1 from each")
    outside = np.flatnonzero((split.labels < 0) | (split.labels >= count))
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{split.where(first)}: label {split.labels[first]} of {count} classes; is the split unlabelled?"
        )
