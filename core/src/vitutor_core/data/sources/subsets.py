"""Stratified, seeded subsets and holdouts of the training split, and the fingerprint of what is trained on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data import keyed
from vitutor_core.data.sources.locate import shorten
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig

_STREAM = 0x5AB5E7
_HOLDOUT_STREAM = 0x401D0
"""Tell these draws from others with the same seed."""


def subset_indices(labels: NDArray[np.int64], config: DataConfig) -> NDArray[np.int64]:
    """Choose the training images that ``config`` asks for: positions in ``labels`` (N,), ascending.

    Each class is put in an order that depends on ``subset_seed``, the class and its size alone, and its head is kept.
    So subsets are nested: 10 % lies in 25 %, 10 images per class lie in 50. ``subset_draw: numpy`` takes the order of
    ``numpy.random.default_rng(class)`` instead and rounds f n to the nearest, halves to even: the subsets of ImageNet
    that Bootstrapping ViTs (arXiv 2112.03552) released.

    - ``fraction`` f keeps floor(f n) of the n images of a class, at least 1;
    - ``per_class`` keeps that many;
    - ``long_tail`` r keeps round(n_max r^(c / (K - 1))) of class c of K, at least 1, at most what there is; the
      exponential profile of Cao et al., 2019, arXiv:1906.07413.

    Raises `DataError` if a class has fewer than ``per_class`` images.
    """
    classes, counts = np.unique(labels, return_counts=True)
    kept = []
    for label, keep in zip(classes.tolist(), _sizes(counts.tolist(), classes.tolist(), config), strict=True):
        members = np.flatnonzero(labels == label)
        if config.subset_draw == "numpy":
            order = np.random.default_rng(label).permutation(len(members))
        else:
            order = keyed.permutation(len(members), config.subset_seed, _STREAM, label)
        kept.append(members[order[:keep]])
    return np.sort(np.concatenate(kept)).astype(np.int64)


def _sizes(counts: list[int], classes: list[int], config: DataConfig) -> list[int]:
    if config.per_class is not None:
        for label, count in zip(classes, counts, strict=True):
            if count < config.per_class:
                raise DataError(
                    f"data.per_class: class {label} has {count} training images, not {config.per_class}; "
                    f"set it to {min(counts)} or fewer"
                )
        return [config.per_class] * len(counts)
    if config.long_tail is not None:
        last = max(len(counts) - 1, 1)
        return [max(round(max(counts) * config.long_tail ** (rank / last)), 1) for rank in range(len(counts))]
    if config.subset_draw == "numpy":
        return [max(round(config.fraction * count), 1) for count in counts]
    # The decimal number that was written, not its binary neighbour: 0.29 of 100 images is 29.
    fraction = Fraction(repr(config.fraction))
    return [max(int(fraction * count), 1) for count in counts]


def hold_out(source: Source, share: float, seed: int) -> Source:
    """Set aside a ``share`` of the training images for evaluation, in place of the source's evaluation split.

    Which images of a class are held out depends on ``seed``, the class and its size alone, see `draw_share`. Both parts
    keep the order of the training split.

    Raises `DataError` if a class has a single image.
    """
    classes, counts = np.unique(source.train.labels, return_counts=True)
    alone = [source.class_names[label] for label in classes[counts == 1]]
    held_out = draw_share(source.train.labels, share, seed, _HOLDOUT_STREAM)
    if alone:
        raise DataError(
            f"data.holdout: a single training image of {shorten(alone)}, where a class needs two; add one, remove the "
            "class, or evaluate on images of their own (folders train/ and val/)"
        )
    return dataclasses.replace(
        source,
        name=f"{source.name}, holdout {share:g}",
        train=part(source.train, np.flatnonzero(~held_out)),
        evaluation=part(source.train, np.flatnonzero(held_out)),
    )


def draw_share(labels: NDArray[np.int64], share: float, *key: int) -> NDArray[np.bool_]:
    """Draw floor(share n), at least 1, of the n images of each class by key: a mask of ``labels``, (N,)."""
    drawn = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        count = max(int(Fraction(repr(share)) * len(members)), 1)
        drawn[members[keyed.permutation(len(members), *key, label)[:count]]] = True
    return drawn


def _in_whole(function: Callable[[Any], Any], positions: NDArray[np.int64], index: Any) -> Any:
    return function(positions[index])


def part(split: Split, positions: NDArray[np.int64]) -> Split:
    """Return the images of a split at ``positions``, (M,), in that order; its hash covers the whole split."""
    digest = hashlib.sha256(split.content_hash.encode())
    digest.update(positions.astype("<i8").tobytes())
    read, where, contents = (
        partial(_in_whole, function, positions) for function in (split.read, split.where, split.contents)
    )
    return Split(split.labels[positions], read, where, digest.hexdigest(), contents)


def fingerprint(source: Source, indices: NDArray[np.int64]) -> str:
    """Return 64 hexadecimal digits that identify both splits, the class names and the training subset."""
    parts = [source.train.content_hash, source.evaluation.content_hash, list(source.class_names)]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update(indices.astype("<i8").tobytes())
    return digest.hexdigest()
