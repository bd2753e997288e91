"""Read every image once, before a run depends on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data.detection.check import check_annotated
from vitutor_core.data.detection.open import is_annotated, open_annotated
from vitutor_core.data.sources.locate import listed
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import fingerprint, subset_indices
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError
from vitutor_core.provenance import usable_cores
from vitutor_core.schema import DataConfig

_CHUNK = 256
"""Images per task of the pool: one future per image would cost more memory than the images' paths."""


class _Facts(NamedTuple):
    """Of one image: width and height, Pillow's mode of the file, and a hash of its pixels."""

    size: tuple[int, int]
    mode: str
    pixels: bytes


class _Found:
    """Of the images of a split; no more than their hashes is kept of each."""

    def __init__(self) -> None:
        self.count = 0
        self.sizes: set[tuple[int, int]] = set()
        self.modes: Counter[str] = Counter()
        self.pixels: list[bytes] = []
        self.problems: list[str] = []

    def add(self, facts: list[_Facts | str]) -> None:
        """Take in the facts of further images; of one that cannot be read, it is the reason."""
        self.count += len(facts)
        for fact in facts:
            if isinstance(fact, str):
                self.problems.append(fact)
            else:
                self.sizes.add(fact.size)
                self.modes[fact.mode] += 1
                self.pixels.append(fact.pixels)

    def described(self) -> dict[str, Any]:
        widths, heights = zip(*self.sizes, strict=True)
        return {
            "sizes": {
                "distinct": len(self.sizes),
                "width": {"min": min(widths), "max": max(widths)},
                "height": {"min": min(heights), "max": max(heights)},
            },
            "modes": dict(sorted(self.modes.items())),
            "pixels": hashlib.sha256(b"".join(self.pixels)).hexdigest(),
        }


def check_source(config: DataConfig, *, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Decode all images of both splits and return a manifest that can be written as JSON.

    Its ``notes`` say what does not stop a run: files that were passed over, and equal images in both splits or of two
    classes. ``progress`` is called with the number of images done and their total.

    Raises what `open_source` raises, and `DataError` naming the images that cannot be read.
    """
    if is_annotated(config.source):
        return check_annotated(open_annotated(config.source), progress=progress)
    source = open_source(config)
    splits = (source.train, source.evaluation)
    total = sum(len(split.labels) for split in splits)
    kept = subset_indices(source.train.labels, config)
    found = (_Found(), _Found())
    with ThreadPoolExecutor(usable_cores()) as pool:
        for split, images in zip(splits, found, strict=True):
            for facts in pool.map(partial(_look, split), _chunks(len(split.labels))):
                images.add(facts)
                progress(sum(images.count for images in found), total)
    problems = [problem for images in found for problem in images.problems]
    if problems:
        raise DataError(listed(problems))
    train, evaluation = found
    return {
        "name": source.name,
        "classes": list(source.class_names),
        "evaluated_on": source.evaluated_on,
        "train": _counts(source, source.train.labels) | train.described(),
        "evaluation": _counts(source, source.evaluation.labels) | evaluation.described(),
        "fingerprint": fingerprint(source, kept),
        "subset": _counts(source, source.train.labels[kept]),
        "notes": [*source.notes, *_doubles(source, [*train.pixels, *evaluation.pixels])],
    }


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _look(split: Split, indices: range) -> list[_Facts | str]:
    found: list[_Facts | str] = []
    for index in indices:
        try:
            image = split.read(index)
        except DataError as error:
            found.append(str(error))
            continue
        pixels = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
        pixels.update(image.tobytes())
        found.append(_Facts(image.size, image.info.get("mode", image.mode), pixels.digest()))
    return found


def _doubles(source: Source, pixels: list[bytes]) -> Iterator[str]:
    """Yield a note on equal images in both splits, and one on equal images of different classes."""
    count = len(source.train.labels)
    labels = np.concatenate([source.train.labels, source.evaluation.labels])
    first: dict[bytes, int] = {}
    in_both, of_two_classes = [], []
    for index, digest in enumerate(pixels):
        other = first.setdefault(digest, index)
        if other == index:
            continue
        where = source.train.where(index) if index < count else source.evaluation.where(index - count)
        before = source.train.where(other) if other < count else source.evaluation.where(other - count)
        if other < count <= index:
            in_both.append(f"{where} equals {before}")
        if labels[other] != labels[index]:
            of_two_classes.append(f"{where} equals {before}")
    if in_both:
        yield f"evaluation images that are trained on: {listed(in_both, limit=3)}"
    if of_two_classes:
        yield f"equal images of different classes: {listed(of_two_classes, limit=3)}"


def _counts(source: Source, labels: NDArray[np.int64]) -> dict[str, Any]:
    per_class = np.bincount(labels, minlength=len(source.class_names))
    return {"images": len(labels), "per_class": {"min": int(per_class.min()), "max": int(per_class.max())}}
