"""Images out of distribution, below the data root, and what is right of each.

- ``a``, ``r``: ImageNet-A and -R (Hendrycks et al., arXiv 1907.07174 and 2006.16241), 200 classes each. A model chooses
  among these: its other logits are left out before the maximum is taken.
- ``c``: ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), a part for each corruption and severity.
- ``v2``: ImageNet-V2 (Recht et al., arXiv 1902.10811), its folders named by class or by 0 to 999, the class's position.
- ``real``: the run's own evaluation images with all the labels that fit, or none (Beyer et al., arXiv 2006.07159):
  real.json has, for each ImageNet validation image in the order of their numbers, the positions of its classes.

Positions are those in the sorted list of class ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitutor_core.data.sources.folder import class_folders
from vitutor_core.data.sources.locate import data_root, require_folder, shorten
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import part
from vitutor_core.data.types import Split
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig

_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})")


class Answers(NamedTuple):
    """Images, and what is right of each, in class ids of the model.

    ``right`` is (N, L), rows of fewer than L ids filled up with -1; a model chooses among ``choices``, (C,). ``where``
    names the images for messages.
    """

    where: Path
    split: Split
    right: Tensor
    choices: Tensor


def open_set(name: str, known: Sequence[str], data: DataConfig) -> Iterator[Answers]:
    """Open the parts of a set for a model of the classes ``known`` that was trained with ``data``.

    Raises `DataError` where the set is not there or not as expected, and `ConfigError` if the model has other classes.
    """
    folder = data_root() / f"imagenet-{name}"
    if name == "c":
        require_folder(folder, "CORRUPTION/SEVERITY/CLASS folders")
        parts = sorted(path for path in folder.glob("*/*") if path.is_dir())
        if not parts:
            raise DataError(f"{folder}: it should hold CORRUPTION/SEVERITY/CLASS folders")
        yield from (_of_some_classes(path, known) for path in parts)
    elif name == "v2":
        yield _v2(folder, known)
    elif name == "real":
        yield _real(folder, known, data)
    else:
        yield _of_some_classes(folder, known)


def _of_some_classes(folder: Path, known: Sequence[str]) -> Answers:
    classes, split = class_folders(folder)
    unknown = [name for name in classes if name not in known]
    if unknown:
        raise ConfigError(f"{folder}: the model does not know {shorten(unknown, 3)}")
    ids = torch.tensor([known.index(name) for name in classes])
    return Answers(folder, split, ids[torch.from_numpy(split.labels)][:, None], ids)


def _v2(folder: Path, known: Sequence[str]) -> Answers:
    require_folder(folder, "the folders 0 to 999, or a folder per class")
    classes, split = class_folders(folder)
    if set(classes) <= set(known) or not all(name.isdecimal() for name in classes):
        found = _of_some_classes(folder, known)
        return found._replace(choices=torch.arange(len(known)))
    ids = torch.tensor([int(name) for name in classes])
    _check_positions(folder, int(ids.max()) + 1, known)
    return Answers(folder, split, ids[torch.from_numpy(split.labels)][:, None], torch.arange(len(known)))


def _real(folder: Path, known: Sequence[str], data: DataConfig) -> Answers:
    require_folder(folder, "real.json")
    path = folder / "real.json"
    labels = _read_labels(path)
    _check_positions(path, 1 + max(max(own, default=-1) for own in labels), known)
    split = open_source(data).evaluation
    of_images = [_labels_of(split.where(index), labels, path) for index in range(len(split.labels))]
    labelled = [index for index, own in enumerate(of_images) if own]
    right = torch.full((len(labelled), max(map(len, of_images), default=0)), -1)
    for position, index in enumerate(labelled):
        right[position, : len(of_images[index])] = torch.tensor(of_images[index])
    return Answers(path, part(split, np.array(labelled, dtype=np.int64)), right, torch.arange(len(known)))


def _read_labels(path: Path) -> list[list[int]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; put the labels of ImageNet-Real there") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found or not all(map(_are_positions, found)):
        raise DataError(f"{path}: expected a JSON list with a list of class positions for each validation image")
    return found


def _are_positions(own: object) -> bool:
    return isinstance(own, list) and all(type(position) is int and position >= 0 for position in own)


def _labels_of(where: str, labels: Sequence[list[int]], path: Path) -> list[int]:
    named = _VALIDATION_IMAGE.match(Path(where).name)
    if named is None:
        raise DataError(
            f"{where}: {path.name} goes by ImageNet's file names, ILSVRC2012_val_00000001 and so on; evaluate on "
            "ImageNet's validation images as files"
        )
    if not 1 <= int(named[1]) <= len(labels):
        raise DataError(f"{where}: {path} has labels of the images 1 to {len(labels)}")
    return labels[int(named[1]) - 1]


def _check_positions(where: Path, count: int, known: Sequence[str]) -> None:
    """Raise `ConfigError` unless a model's class ids are positions in a sorted list of ``count`` classes."""
    if count != len(known):
        raise ConfigError(f"{where}: positions of {count} classes; the model has {len(known)}")
    if list(known) != sorted(known):
        raise ConfigError(f"{where}: positions in a sorted list of classes; the model's classes are not sorted")
