"""Read every image, and every mask of one, once, before a run depends on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data.detection import open as detection
from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit
from vitutor_core.data.sources.locate import listed, several
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import fingerprint, subset_indices
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError
from vitutor_core.provenance import usable_cores
from vitutor_core.schema import DataConfig

_CHUNK, _CHUNK_OF_MASKS = 256, 8
"""Images per task of the pool: one future per image would cost more memory than the paths. Masks take longer."""

Progress = Callable[[int, int], None]
"""Gets the number of images that are done, and their total."""
FactsT = TypeVar("FactsT")


class _Facts(NamedTuple):
    """Of one image: width and height, Pillow's mode of the file, and a hash of its pixels."""

    size: tuple[int, int]
    mode: str
    pixels: bytes


class _Found:
    """Of the images of a split; no more than their hashes is kept of each."""

    def __init__(self) -> None:
        self.sizes: set[tuple[int, int]] = set()
        self.modes: Counter[str] = Counter()
        self.pixels: list[bytes] = []

    def add(self, facts: list[_Facts]) -> None:
        self.sizes.update(fact.size for fact in facts)
        self.modes.update(fact.mode for fact in facts)
        self.pixels += [fact.pixels for fact in facts]

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


def check_source(config: DataConfig, *, progress: Progress) -> dict[str, Any]:
    """Decode all images of both splits and return a manifest that can be written as JSON.

    Its ``notes`` say what does not stop a run: files that were passed over, and equal images in both splits or of two
    classes.

    Raises what `open_source` raises, and `DataError` naming the images that cannot be read.
    """
    if detection.is_annotated(config.source):
        return check_annotated(detection.open_annotated(config.source), progress=progress)
    source = open_source(config)
    kept = subset_indices(source.train.labels, config)
    train, evaluation = found = (_Found(), _Found())
    looks = [(len(split.labels), partial(_look, split)) for split in (source.train, source.evaluation)]
    for split, facts in _look_at_all(looks, _CHUNK, progress):
        found[split].add(facts)
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


def check_annotated(source: AnnotatedSource, *, progress: Progress) -> dict[str, Any]:
    """Decode all images and masks of a source and return a manifest, as `check_source` does."""
    splits = {"training": source.train, "evaluation": source.evaluation}
    outside = [0, 0]
    looks = [(len(split), partial(_unseen, split)) for split in splits.values()]
    for number, unseen in _look_at_all(looks, _CHUNK_OF_MASKS, progress):
        outside[number] += sum(unseen)
    label_of = {category.id: label for label, category in enumerate(source.categories)}
    notes, counts = [], []
    for (title, split), count in zip(splits.items(), outside, strict=True):
        objects = list(chain.from_iterable(split.annotations))
        labels = np.array([label_of[one["category_id"]] for one in objects], dtype=np.int64)
        counts.append(_counts(source, labels) | {"images": len(split)})
        kinds = {
            "images without an object": sum(not own for own in split.annotations),
            "crowd regions, which are not trained on": sum(one["iscrowd"] for one in objects),
            "objects without a pixel in their image, which are not trained on": count,
        }
        notes += [f"{title}: {number} {kind}" for kind, number in kinds.items() if number]
    return {
        "name": source.name,
        "classes": list(source.class_names),
        "evaluated_on": None,
        "train": counts[0],
        "evaluation": counts[1],
        "fingerprint": detection.fingerprint(source),
        "subset": {"images": len(detection.usable(source.train))},
        "notes": notes,
    }


def _look_at_all(
    looks: Sequence[tuple[int, Callable[[int], FactsT]]], size: int, progress: Progress
) -> Iterator[tuple[int, list[FactsT]]]:
    """Yield the position of a split and the facts of further images of it, in their order, until all are seen.

    ``looks`` has of each split the number of its images, and what returns the facts of one; ``size`` images are a task.
    Raises `DataError` at the end, naming all images of which that raised it.
    """
    total, done = sum(count for count, _ in looks), 0
    problems: list[str] = []
    with ThreadPoolExecutor(usable_cores()) as pool:
        for split, (count, look) in enumerate(looks):
            chunks = (range(start, min(start + size, count)) for start in range(0, count, size))
            for facts, unread in pool.map(partial(_look_at, look), chunks):
                done += len(facts) + len(unread)
                progress(done, total)
                problems += unread
                yield split, facts
    if problems:
        raise several(problems)


def _look_at(look: Callable[[int], FactsT], indices: range) -> tuple[list[FactsT], list[str]]:
    facts, unread = [], []
    for index in indices:
        try:
            facts.append(look(index))
        except DataError as error:
            unread.append(str(error))
    return facts, unread


def _look(split: Split, index: int) -> _Facts:
    image = split.read(index)
    pixels = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
    pixels.update(image.tobytes())
    return _Facts(image.size, image.info.get("mode", image.mode), pixels.digest())


def _unseen(split: AnnotatedSplit, index: int) -> int:
    """Return how many objects of an image have no pixel in it."""
    split.read(index)
    wanted = sum(not one["iscrowd"] for one in split.annotations[index])
    return wanted - sum(1 for _ in split.objects(index))


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


def _counts(source: Source | AnnotatedSource, labels: NDArray[np.int64]) -> dict[str, Any]:
    per_class = np.bincount(labels, minlength=len(source.class_names))
    return {"images": len(labels), "per_class": {"min": int(per_class.min()), "max": int(per_class.max())}}
