"""Data sets of the Hugging Face ``datasets`` library, through timm's reader."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vitutor_core.config import nearest
from vitutor_core.data.folder import folder_source
from vitutor_core.data.images import read_image
from vitutor_core.data.locate import data_root, locate
from vitutor_core.data.statistics import IMAGENET
from vitutor_core.data.types import Source, Split
from vitutor_core.data.vision import torchvision_source
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig

_STREAMS = ("hfids", "tfds", "wds")


def timm_source(name: str, config: DataConfig) -> Source:
    """Open a data set by the name that ``timm.data.create_dataset`` takes.

    ``hfds/NAME`` is read by timm. ``torch/NAME`` is `torchvision_source` and a folder is `folder_source`: timm would
    unpickle CIFAR, and shift the labels where a class is missing in val.

    Raises `ConfigError` for unknown names and for formats that can only be streamed, and `DataError` if the data cannot
    be read.
    """
    prefix, _, rest = name.partition("/")
    if locate(name).is_dir():
        return folder_source(locate(name), config)
    if prefix == "torch":
        return torchvision_source(rest, config)
    if prefix in _STREAMS:
        raise ConfigError(f"data.source: timm:{name} can only be streamed, without subsets; use timm:hfds/NAME")
    if prefix != "hfds" or not rest:
        hint = nearest(prefix, ("hfds", "torch"))
        raise ConfigError(f"data.source: no folder {locate(name)}, and no reader '{prefix}'{hint}; use hfds/ or torch/")
    train = _open(name, ("train",))
    wanted = ("validation", "test") if config.eval_split is None else (config.eval_split,)
    evaluation = _open(name, wanted if config.holdout is None else ("train",))
    if train.class_to_idx != evaluation.class_to_idx:
        raise DataError(f"timm:{name}: the class names of its splits differ; choose another data set")
    class_names = tuple(sorted(train.class_to_idx, key=train.class_to_idx.__getitem__))
    return Source(
        f"timm:{name}", class_names, IMAGENET.mean, IMAGENET.std, _split(train, name), _split(evaluation, name)
    )


def _open(name: str, splits: tuple[str, ...]) -> Any:
    """Return timm's reader of the first of ``splits`` that the data set has."""
    from timm.data import create_dataset

    reasons = []
    for split in splits:
        try:
            return create_dataset(name, root=str(data_root() / "hfds"), split=split).reader
        except ImportError:
            raise DataError(f"timm:{name}: needs the package 'datasets'; pip install datasets") from None
        except (OSError, ValueError, LookupError) as error:
            reasons.append(" ".join(str(error).split()))
    raise DataError(f"timm:{name}: no split {' or '.join(splits)}: {'; '.join(reasons)}")


@dataclass(frozen=True, eq=False)
class _ReaderImages:
    reader: Any
    name: str

    def read(self, index: int) -> Image.Image:
        stream, _ = self.reader[int(index)]
        with stream:
            return read_image(stream.read(), self.where(index))

    def where(self, index: int) -> str:
        return f"timm:{self.name}, split {self.reader.split}, row {index}"


def _split(reader: Any, name: str) -> Split:
    labels = np.fromiter(reader.iter_targets(), dtype=np.int64, count=len(reader))
    # The library's own fingerprint depends on its version and its cache; the size and the labels belong to the data.
    size = reader.split_info.num_bytes if reader.split_info else None
    digest = hashlib.sha256(f"{size}\0".encode() + labels.astype("<i8").tobytes())
    images = _ReaderImages(reader, name)
    return Split(labels, images.read, images.where, digest.hexdigest())
