"""Fill in what a recipe leaves to the user's images and the machine: look at both, and take the sizes of `own`."""

from __future__ import annotations

import copy
import json
import statistics
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

from vitutor_core.config import Config, apply_settings
from vitutor_core.errors import ConfigError
from vitutor_core.own import HOLDOUT, PRETRAINED, Images, Machine, Sizes, Wanted, derive
from vitutor_core.provenance import usable_cores, usable_gpus
from vitutor_core.schema import DataConfig

_SEEN = 32
"""Images whose size is looked at."""
_DECIDES = ("data", "train", "runtime")
"""Sections whose settings decide on other sizes."""


def names_sizes(values: Any) -> bool:
    """Return whether nested values name a size by a dollar."""
    if isinstance(values, dict):
        return any(map(names_sizes, values.values()))
    if isinstance(values, list):
        return any(map(names_sizes, values))
    return _name(values) is not None


def filled(values: Any, sizes: Sizes) -> Any:
    """Return nested values with what they name; raises `ConfigError` where there is no such size."""
    if isinstance(values, dict):
        return {key: filled(value, sizes) for key, value in values.items()}
    if isinstance(values, list):
        return [filled(value, sizes) for value in values]
    name = _name(values)
    if name is None:
        return values
    if name not in Sizes._fields:
        raise ConfigError(f"${name}: no such size; there are {', '.join(Sizes._fields)}")
    return copy.deepcopy(getattr(sizes, name))


def _name(value: Any) -> str | None:
    return value[1:] if isinstance(value, str) and value.startswith("$") else None


def sizes_of(values: dict[str, Any], settings: Iterable[str], schema: type[Config]) -> Sizes:
    """Derive the sizes that nested ``values`` leave open, given what ``settings`` set; raises as `open_source` does."""
    given = copy.deepcopy(values)
    apply_settings(given, (text for text in settings if _section(text) in _DECIDES), schema)
    data = {name: value for name, value in given["data"].items() if _name(value) is None}
    if "source" not in data:
        raise ConfigError("data.source: which images? name their folder with --source folder:PATH")
    train, device = given.get("train", {}), given.get("runtime", {}).get("device", "auto")
    wanted = Wanted(
        image_size=_number(data, "image_size"),
        batch_size=_number(train, "batch_size"),
        epochs=_number(train, "epochs"),
        holdout=data.get("holdout"),
        full_epochs=train.get("epoch_length") == "full",
    )
    # Every other field is checked before the images are read, and the size has no part in what is read.
    config = DataConfig.from_mapping({"image_size": _SEEN, **data}, where="data")
    return derive(images_of(config), machine(str(device)), wanted)


def _section(text: str) -> str:
    return text.partition("=")[0].partition(".")[0]


def _number(section: dict[str, Any], name: str) -> int | None:
    value = section.get(name)
    return value if isinstance(value, int) and value > 0 else None  # the schema refuses others


def images_of(config: DataConfig) -> Images:
    """Look at the images of a source."""
    reads = config.model_dump(mode="json", exclude={"image_size", "loader", "interpolation", "crop_ratio"})
    return _images_of(json.dumps(reads))


@cache
def _images_of(reads: str) -> Images:
    from vitutor_core.data.sources.open import open_source
    from vitutor_core.data.sources.subsets import subset_indices

    config = DataConfig.from_mapping({**json.loads(reads), "image_size": _SEEN}, where="data")
    config = with_holdout(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training opens it again
        source = open_source(config)
    indices = subset_indices(source.train.labels, config)
    chosen = indices[:: max(len(indices) // _SEEN, 1)][:_SEEN].tolist()
    side = statistics.median_low([min(_size(source.train, index)) for index in chosen])
    return Images(
        train=len(indices),
        whole=len(source.train.labels),
        evaluation=len(source.evaluation.labels),
        classes=len(source.class_names),
        side=side,
        held_out=config.holdout is not None,
    )


def with_holdout(config: DataConfig) -> DataConfig:
    """Hold out training images where a folder has no others to evaluate on, as `own` recipes do."""
    if config.holdout is None and _lacks_validation(config):
        return config.changed([f"holdout={HOLDOUT}"])
    return config


def _lacks_validation(config: DataConfig) -> bool:
    """Return whether a folder has no split to evaluate on: training images alone, or the folders of the classes."""
    from vitutor_core.data.sources import splits
    from vitutor_core.data.sources.locate import locate

    kind, _, path = config.source.partition(":")
    folder = locate(path)
    if kind != "folder" or config.eval_split is not None or not folder.is_dir():
        return False
    found = [entry.name for entry in folder.iterdir() if entry.is_dir() and splits.is_split(entry.name)]
    return splits.choose(found, config, str(folder)) is None


def _size(split: Any, index: int) -> tuple[int, int]:
    """Return width and height of an image, by its header where it is a file."""
    from PIL import Image

    try:
        with Image.open(split.where(index)) as image:
            return image.size
    except Exception:  # no file, or a damaged one: reading it says which image it is
        size: tuple[int, int] = split.read(index).size
        return size


@cache
def machine(device: str = "auto") -> Machine:
    """Look at the machine, without torch."""
    has_gpu = device.startswith("cuda") or bool(usable_gpus(device))
    return Machine(usable_cores(), has_gpu, has_gpu and _has_weights())


def _has_weights() -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(f"timm/{PRETRAINED}", "model.safetensors"), str)
