"""Folders of images: PATH/train/<class>/... and PATH/val/<class>/..."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from vitutor_core.config import nearest
from vitutor_core.data.sources import splits
from vitutor_core.data.sources.images import file_split, is_image
from vitutor_core.data.sources.locate import contents, require_folder, shorten
from vitutor_core.data.sources.statistics import IMAGENET
from vitutor_core.data.sources.subsets import part
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError, are_files_exhausted
from vitutor_core.schema import DataConfig

_LAYOUT = "train/<class>/... and val/<class>/..."


def folder_source(folder: Path, config: DataConfig) -> Source:
    """Open a folder of images, one folder per class; hidden files are passed over, other files too but with a note.

    Label ids are the positions in the sorted class list of the training split, for both splits; these go by any name
    of `splits`. With ``config.holdout``, a training split is enough, and so are the classes' folders alone.

    Raises `DataError` if the folder is not laid out like this.
    """
    require_folder(folder, _LAYOUT)
    found = [entry.name for entry in folder.iterdir() if entry.is_dir() and splits.is_split(entry.name)]
    chosen = splits.choose(found, config, str(folder))
    if config.holdout is not None and not any(map(_folders, (folder / name for name in found))):
        chosen = splits.Chosen("", None, ())  # the classes themselves, of which one may be called train
    if chosen is None:
        hint = "" if config.holdout else "; if these are classes, hold out some of their images with data.holdout=0.2"
        hint = f"; did you mean {folder.parent}?" if splits.is_split(folder.name) else hint
        raise DataError(f"{folder}: expected {_LAYOUT}; the folder holds {contents(folder)}{hint}")
    class_names = _class_names(folder / chosen.train)
    train, notes = _read_split(folder / chosen.train, class_names)
    evaluation = part(train, np.arange(0))
    if chosen.evaluation is not None:
        evaluation, more_notes = _read_known(folder / chosen.evaluation, class_names, chosen.train)
        notes += more_notes
    return Source(
        f"folder:{folder.name}", class_names, *IMAGENET, train, evaluation, (*chosen.notes, *notes), chosen.evaluation
    )


def training_folder(folder: Path, class_names: Sequence[str]) -> Split:
    """Open ``folder/train/<class>/...``, made for another source, whose ``class_names`` give the label ids.

    Where ``folder`` has a ``manifest.json``, as generated images have, the split's hash covers that too.
    Raises `DataError` if the folder is not there, has classes that the source does not have, or lacks listed images.
    """
    require_folder(folder / "train", "a folder per class")
    split, _ = _read_known(folder / "train", class_names, "data.source")
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
    return class_names, _read_split(folder, class_names)[0]


def _folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() and _visible(entry.name))


def _class_names(split: Path) -> tuple[str, ...]:
    names = _folders(split)
    if not names:
        raise DataError(f"{split}: no class folders; it holds {contents(split)}")
    if all(map(splits.is_split, names)):
        raise DataError(f"{split}: its classes would be {', '.join(names)}; name the folder that holds {_LAYOUT}")
    splits.by_lower_case(names, f"{split}: classes")
    return tuple(names)


def _read_known(split: Path, class_names: Sequence[str], owner: str) -> tuple[Split, tuple[str, ...]]:
    """Read a split as `_read_split` does; raises `DataError` for classes that their ``owner`` does not have."""
    unknown = [name for name in _class_names(split) if name not in class_names]
    if unknown:
        hint = nearest(unknown[0], class_names)
        raise DataError(f"{split}: classes that {owner} does not have: {shorten(unknown)}{hint}")
    return _read_split(split, class_names)


def _read_split(split: Path, class_names: Sequence[str]) -> tuple[Split, tuple[str, ...]]:
    """Return the split, and a note on files in it that are not images."""
    owners = {_identity(above): "" for above in (split, *split.resolve().parents)}
    present = {label: name for label, name in enumerate(class_names) if (split / name).is_dir()}
    for name in present.values():
        _own(split / name, name, owners)
    passed_over = Counter(
        f"{_kind(entry.name)} outside of the classes"
        for entry in split.iterdir()
        if _visible(entry.name) and not entry.is_dir()
    )
    files: list[str] = []
    labels: list[int] = []
    for label, name in present.items():
        found = _image_files(split, name, owners, passed_over)
        files += found
        labels += [label] * len(found)
    kinds = [f"{count} {kind}" for kind, count in passed_over.most_common()]
    notes = (f"{split}: files passed over: {shorten(kinds)}",) if kinds else ()
    return file_split(split, files, np.array(labels, dtype=np.int64)), notes


def _image_files(
    split: Path, class_name: str, owners: dict[tuple[int, int], str], passed_over: Counter[str]
) -> list[str]:
    """List the images below a class folder, relative to ``split``, sorted; other files are counted by suffix.

    Links are followed, each real folder once; ``owners`` has the classes of the folders that were found before.
    """
    found = []
    for parent, folders, files in os.walk(split / class_name, onerror=_refuse, followlinks=True):
        folder = Path(parent)
        folders[:] = [name for name in folders if _visible(name) and _own(folder / name, class_name, owners)]
        relative = folder.relative_to(split)
        for name in filter(_visible, files):
            if is_image(folder / name):
                found.append((relative / name).as_posix())
            else:
                passed_over[_kind(name)] += 1
    return sorted(found)


def _own(folder: Path, class_name: str, owners: dict[tuple[int, int], str]) -> bool:
    """Make a class the owner of a folder; return whether it was not before. Raises `DataError` if another is."""
    real = _identity(folder)
    owner = owners.get(real)
    if owner not in (None, class_name):
        problem = f"this is the folder of class '{owner}' too" if owner else "the link leads to a folder above itself"
        raise DataError(f"{folder}: {problem}, so images would have two labels; remove the link")
    owners[real] = class_name
    return owner is None


def _identity(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:
        _refuse(error)
    return found.st_dev, found.st_ino


def _refuse(error: OSError) -> NoReturn:
    if are_files_exhausted(error):
        raise error
    raise DataError(f"{error.filename}: {error.strerror}; make the folder readable, or remove it")


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _kind(name: str) -> str:
    return Path(name).suffix.lower() or "without a suffix"
