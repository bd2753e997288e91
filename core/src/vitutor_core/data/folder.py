"""Folders of images: PATH/train/<class>/... and PATH/val/<class>/..."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitutor_core.config import nearest
from vitutor_core.data.images import file_split
from vitutor_core.data.locate import contents, require_folder, shorten
from vitutor_core.data.statistics import IMAGENET
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError

_EVALUATION = ("val", "validation", "test")
_SPLITS = ("train", *_EVALUATION)
_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))
_LAYOUT = "train/<class>/... and val/<class>/..."


def folder_source(folder: Path) -> Source:
    """Open a folder of images, one folder per class; hidden files and files that are no images are passed over.

    Label ids are the positions in the sorted class list of ``train``, for both splits. The evaluation split is
    ``val``, else ``validation``, else ``test``.

    Raises `DataError` if the folder is not laid out like this.
    """
    require_folder(folder, _LAYOUT)
    evaluation = next((folder / name for name in _EVALUATION if (folder / name).is_dir()), None)
    if not (folder / "train").is_dir() or evaluation is None:
        hint = f"; did you mean {folder.parent}?" if folder.name in _SPLITS else ""
        raise DataError(f"{folder}: expected {_LAYOUT}; the folder holds {contents(folder)}{hint}")
    class_names = _class_names(folder / "train")
    unknown = [name for name in _class_names(evaluation) if name not in class_names]
    if unknown:
        hint = nearest(unknown[0], class_names)
        raise DataError(f"{evaluation}: classes that train does not have: {shorten(unknown)}{hint}")
    return Source(
        name=f"folder:{folder.name}",
        class_names=class_names,
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        train=_read_split(folder / "train", class_names),
        evaluation=_read_split(evaluation, class_names),
    )


def training_folder(folder: Path, class_names: Sequence[str]) -> Split:
    """Open ``folder/train/<class>/...``, made for another source, whose ``class_names`` give the label ids.

    Where ``folder`` has a ``manifest.json``, as generated images have, the split's hash covers that too.
    Raises `DataError` if the folder is not there, has classes that the source does not have, or lacks listed images.
    """
    require_folder(folder / "train", "a folder per class, as 'dearkd generate' makes them")
    unknown = [name for name in _class_names(folder / "train") if name not in class_names]
    if unknown:
        hint = nearest(unknown[0], class_names)
        raise DataError(f"{folder / 'train'}: classes that data.source does not have: {shorten(unknown)}{hint}")
    split = _read_split(folder / "train", class_names)
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return split
    _check_complete(folder, manifest, split)
    digest = hashlib.sha256(split.content_hash.encode())
    digest.update(manifest.read_bytes())
    return dataclasses.replace(split, content_hash=digest.hexdigest())


def _check_complete(folder: Path, manifest: Path, split: Split) -> None:
    """Raise `DataError` if images are missing that the manifest of a generated set lists."""
    try:
        listed = [str(folder / image["file"]) for image in json.loads(manifest.read_text())["images"]]
    except (OSError, ValueError, LookupError, TypeError):
        raise DataError(f"{manifest}: not readable; make the images again") from None
    missing = sorted(set(listed) - {split.where(index) for index in range(len(split.labels))})
    if missing:
        raise DataError(f"{shorten(missing)}: {len(missing)} of {len(listed)} images are missing; make them again")


def class_folders(folder: Path) -> tuple[tuple[str, ...], Split]:
    """Open ``folder/<class>/...``: its sorted classes, and its images with their positions in them as labels."""
    require_folder(folder, "a folder per class")
    class_names = _class_names(folder)
    return class_names, _read_split(folder, class_names)


def _class_names(split: Path) -> tuple[str, ...]:
    names = sorted(entry.name for entry in split.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{split}: no class folders; it holds {contents(split)}")
    if set(names) <= set(_SPLITS):
        raise DataError(f"{split}: its classes would be {', '.join(names)}; name the folder that holds {_LAYOUT}")
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{split}: classes '{other}' and '{name}' differ only in case; rename or merge them")
    return tuple(names)


def _read_split(split: Path, class_names: Sequence[str]) -> Split:
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = _image_files(split, name)
        files += found
        labels += [label] * len(found)
    return file_split(split, files, np.array(labels, dtype=np.int64))


def _image_files(split: Path, class_name: str) -> list[str]:
    """List the images below a class folder, relative to ``split``, sorted; links are followed."""
    found = []
    for parent, folders, files in os.walk(split / class_name, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(parent).relative_to(split)
        found += [
            (relative / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in _SUFFIXES
        ]
    return sorted(found)
