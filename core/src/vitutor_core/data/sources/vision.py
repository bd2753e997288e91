"""Data sets of torchvision that are stored as plain images or arrays: none of them is unpickled.

torchvision checks the MD5 of most archives. As MD5 can be forged and one archive has none, the SHA-256 of each archive
is written to ``<data root>/<name>/SHA256.json`` when it is first used, and a later change is refused.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitutor_core.config import nearest
from vitutor_core.data.sources.cifar import CIFAR, cifar_source
from vitutor_core.data.sources.images import array_split, file_split
from vitutor_core.data.sources.locate import data_root
from vitutor_core.data.sources.statistics import IMAGENET
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.files import file_sha256
from vitutor_core.schema import DataConfig


@dataclass(frozen=True)
class _Entry:
    """How to open a class of torchvision: arguments per split, attributes with images and labels, archives it keeps."""

    dataset: str
    train: tuple[dict[str, Any], ...]
    evaluation: dict[str, Any]
    images: str
    labels: str
    archives: str


def _mnist(dataset: str) -> _Entry:
    return _Entry(dataset, ({"train": True},), {"train": False}, "data", "targets", f"{dataset}/raw/*.gz")


def _splits(dataset: str, images: str, labels: str, archives: str, train: tuple[str, ...] = ("train",)) -> _Entry:
    return _Entry(dataset, tuple({"split": name} for name in train), {"split": "test"}, images, labels, archives)


_ENTRIES = {
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST"),
    "kmnist": _mnist("KMNIST"),
    "svhn": _splits("SVHN", "data", "labels", "*.mat"),
    "stl10": _splits("STL10", "data", "labels", "*.tar.gz"),
    "flowers102": _splits("Flowers102", "_image_files", "_labels", "flowers-102/*.*", train=("train", "val")),
    "oxford_pets": _splits("OxfordIIITPet", "_images", "_labels", "oxford-iiit-pet/*.tar.gz", train=("trainval",)),
    "fgvc_aircraft": _splits("FGVCAircraft", "_image_files", "_labels", "*.tar.gz", train=("trainval",)),
    "food101": _splits("Food101", "_image_files", "_labels", "*.tar.gz"),
}


def torchvision_source(name: str, config: DataConfig) -> Source:
    """Open a data set of torchvision under ``<data root>/<name>``, downloaded at first use.

    ``cifar10`` and ``cifar100`` are read by `cifar_source`, as torchvision unpickles them. Flowers trains on train and
    val, Pets and Aircraft on trainval; evaluation is the test split.

    Raises `ConfigError` if the data set is not one of the table, and `DataError` if it cannot be downloaded, or if an
    archive has changed since its first use.
    """
    if name in CIFAR:
        return cifar_source(name, config)
    if name not in _ENTRIES:
        valid = sorted((*_ENTRIES, *CIFAR))
        raise ConfigError(f"data.source: no torchvision:{name}{nearest(name, valid)}; valid: {', '.join(valid)}")
    entry, root = _ENTRIES[name], data_root() / name
    pickled = next(root.glob("*/processed/*.pt"), None)
    if pickled is not None:
        raise DataError(f"{pickled}: a cache of an old torchvision, which is not loaded; delete {pickled.parent}")
    train = [_open(entry, root, arguments) for arguments in entry.train]
    evaluation = _open(entry, root, entry.evaluation)
    _trust_on_first_use(root, entry.archives)
    return Source(
        name=name,
        class_names=tuple(getattr(evaluation, "classes", map(str, range(10)))),  # SVHN has no list; they are digits
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        train=_split(entry, root, train, f"{name}, train"),
        evaluation=_split(entry, root, [evaluation], f"{name}, test"),
    )


def _open(entry: _Entry, root: Path, arguments: dict[str, Any]) -> Any:
    from torchvision import datasets

    try:
        root.mkdir(parents=True, exist_ok=True)
        return getattr(datasets, entry.dataset)(str(root), download=True, **arguments)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{root}: torchvision cannot open {entry.dataset}: {reason}; check the network, or delete the "
            "folder to download it again"
        ) from None


def _split(entry: _Entry, root: Path, parts: list[Any], name: str) -> Split:
    labels = np.concatenate([np.asarray(getattr(part, entry.labels)) for part in parts]).astype(np.int64)
    if isinstance(getattr(parts[0], entry.images), list):
        paths = [str(path) for part in parts for path in getattr(part, entry.images)]
        return file_split(root, [os.path.relpath(path, root) for path in paths], labels)
    pixels = np.concatenate([np.asarray(getattr(part, entry.images)) for part in parts])
    if pixels.ndim == 4:
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    return array_split(pixels, labels, name)


def _trust_on_first_use(root: Path, pattern: str) -> None:
    record = root / "SHA256.json"
    known: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    found = {archive.relative_to(root).as_posix(): file_sha256(archive) for archive in sorted(root.glob(pattern))}
    for name, sha256 in found.items():
        if known.get(name, sha256) != sha256:
            raise DataError(
                f"{root / name}: SHA-256 is {sha256}, at first use it was {known[name]}; delete {root} to start afresh"
            )
    if not found.keys() <= known.keys():
        record.write_text(json.dumps(known | found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
