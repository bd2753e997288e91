"""Sources of some of their classes: ImageNet-100 and its like."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitutor_core.config import nearest
from vitutor_core.data.sources.locate import locate, shorten
from vitutor_core.data.sources.subsets import part
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError

_BUNDLED = ("imagenet100", "cifar100_20")
"""imagenet100: the 100 ids of Tian et al., "Contrastive Multiview Coding" (2019), used by most papers of that name.
cifar100_20: of each of CIFAR-100's 20 superclasses the first class in alphabetical order."""


def read_class_list(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of a bundled list, of a file with one name in a line, or the names themselves.

    In a file, what follows a name and a space is a comment. Raises `ConfigError` if there is no such list, if it is
    empty, or if a name is in it twice.
    """
    if not isinstance(given, str):
        return _checked(tuple(given), "data.class_list")
    if given in _BUNDLED:
        text = (files("vitutor_core.data.sources") / "class_lists" / f"{given}.txt").read_text(encoding="utf-8")
        return _checked(_names(text), given)
    path = locate(given)
    try:
        return _checked(_names(path.read_text(encoding="utf-8")), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"data.class_list: {path}: {reason}; name a file of class names, or {', '.join(_BUNDLED)}"
        ) from None


def restrict(source: Source, names: Sequence[str]) -> Source:
    """Keep the classes ``names`` of a source, in the source's order; raises `ConfigError` for others than its own."""
    unknown = [name for name in names if name not in set(source.class_names)]
    if unknown:
        hint = nearest(unknown[0], source.class_names)
        raise ConfigError(f"data.class_list: {source.name} has no classes {shorten(unknown)}{hint}")
    wanted = set(names)
    ids = np.array([label for label, name in enumerate(source.class_names) if name in wanted])
    return dataclasses.replace(
        source,
        name=f"{source.name}, {len(ids)} classes",
        class_names=tuple(source.class_names[label] for label in ids),
        train=_of_classes(source.train, ids),
        evaluation=_of_classes(source.evaluation, ids),
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(line.split()[0] for line in text.splitlines() if line.strip())


def _checked(names: tuple[str, ...], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        problem = f"has {shorten(twice)} twice" if twice else "is empty"
        raise ConfigError(f"data.class_list: {Path(where).name} {problem}")
    return names


def _of_classes(split: Split, ids: NDArray[np.int64]) -> Split:
    kept = part(split, np.flatnonzero(np.isin(split.labels, ids)))
    return dataclasses.replace(kept, labels=np.searchsorted(ids, kept.labels))
