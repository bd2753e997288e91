"""Read every image once, before a run depends on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data.sources import open_source
from vitutor_core.data.subsets import fingerprint, subset_indices
from vitutor_core.data.types import Source, Split
from vitutor_core.schema import DataConfig

_CHUNK = 256
"""Images per task of the pool: one future per image would cost more memory than the images' paths."""


def check_source(config: DataConfig, *, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Decode all images of both splits and return a manifest that can be written as JSON.

    ``progress`` is called with the number of images done and their total. Raises what `open_source` raises, and
    `DataError` naming the first image that cannot be read.
    """
    source = open_source(config)
    total = len(source.train.labels) + len(source.evaluation.labels)
    kept = subset_indices(source.train.labels, config)
    train = _check_split(source, source.train, lambda done: progress(done, total))
    offset = len(source.train.labels)
    evaluation = _check_split(source, source.evaluation, lambda done: progress(offset + done, total))
    return {
        "name": source.name,
        "classes": list(source.class_names),
        "train": train,
        "evaluation": evaluation,
        "fingerprint": fingerprint(source, kept),
        "subset": _counts(source, source.train.labels[kept]),
    }


def _check_split(source: Source, split: Split, progress: Callable[[int], None]) -> dict[str, Any]:
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    done = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for facts in pool.map(partial(_decode, split), _chunks(len(split.labels))):
            sizes.update(size for size, _ in facts)
            modes.update(mode for _, mode in facts)
            done += len(facts)
            progress(done)
    widths, heights = zip(*sizes, strict=True)
    return {
        **_counts(source, split.labels),
        "sizes": {
            "distinct": len(sizes),
            "width": {"min": min(widths), "max": max(widths)},
            "height": {"min": min(heights), "max": max(heights)},
        },
        "modes": dict(sorted(modes.items())),
    }


def _chunks(count: int) -> Iterator[range]:
    return (range(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _decode(split: Split, indices: range) -> list[tuple[tuple[int, int], str]]:
    images = (split.read(index) for index in indices)
    return [(image.size, image.info.get("mode", image.mode)) for image in images]


def _counts(source: Source, labels: NDArray[np.int64]) -> dict[str, Any]:
    per_class = np.bincount(labels, minlength=len(source.class_names))
    return {"images": len(labels), "per_class": {"min": int(per_class.min()), "max": int(per_class.max())}}
