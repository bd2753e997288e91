"""Read every image and every mask once, before a run depends on it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit
from vitutor_core.data.detection.open import fingerprint, usable
from vitutor_core.data.sources.locate import listed
from vitutor_core.errors import DataError
from vitutor_core.provenance import usable_cores


def check_annotated(source: AnnotatedSource, *, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Decode all images and masks of a source and return a manifest, as `data.check.check_source` does.

    Raises `DataError` naming what cannot be read.
    """
    splits = {"training": source.train, "evaluation": source.evaluation}
    total, done = sum(map(len, splits.values())), 0
    problems: list[str] = []
    notes: list[str] = []
    for title, split in splits.items():
        outside = 0
        with ThreadPoolExecutor(usable_cores()) as pool:
            for found in pool.map(partial(_look, split), range(len(split))):
                done += 1
                progress(done, total)
                if isinstance(found, str):
                    problems.append(found)
                else:
                    outside += found
        empty = sum(not objects for objects in split.annotations)
        crowds = sum(one["iscrowd"] for objects in split.annotations for one in objects)
        for count, what in ((empty, "images without an object"), (crowds, "crowd regions, which are not trained on")):
            if count:
                notes.append(f"{title}: {count} {what}")
        if outside:
            notes.append(f"{title}: {outside} objects without a pixel in their image, which are not trained on")
    if problems:
        raise DataError(listed(problems))
    trained_on = usable(source.train)
    return {
        "name": source.name,
        "classes": list(source.class_names),
        "evaluated_on": None,
        "train": _counts(source, source.train),
        "evaluation": _counts(source, source.evaluation),
        "fingerprint": fingerprint(source),
        "subset": {"images": len(trained_on)},
        "notes": notes,
    }


def _look(split: AnnotatedSplit, index: int) -> int | str:
    """Return how many objects of an image have no pixel in it, or what is wrong with it."""
    try:
        split.read(index)
        wanted = sum(not one["iscrowd"] for one in split.annotations[index])
        return wanted - sum(1 for _ in split.objects(index))
    except DataError as error:
        return str(error)


def _counts(source: AnnotatedSource, split: AnnotatedSplit) -> dict[str, Any]:
    """Count images, and objects per class."""
    label_of = {category.id: label for label, category in enumerate(source.categories)}
    labels = [label_of[one["category_id"]] for objects in split.annotations for one in objects]
    per_class = np.bincount(np.array(labels, dtype=np.int64), minlength=len(source.categories))
    return {"images": len(split), "per_class": {"min": int(per_class.min()), "max": int(per_class.max())}}
