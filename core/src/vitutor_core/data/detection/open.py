"""Sources of images with boxes and masks, by the names that `data.source` takes."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from vitutor_core.config import nearest
from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit
from vitutor_core.data.detection.coco import coco_source
from vitutor_core.data.detection.scenes import scenes_source
from vitutor_core.data.sources.open import ANNOTATED
from vitutor_core.errors import ConfigError, DataError


def is_annotated(source: str) -> bool:
    """Return whether a data source has boxes and masks."""
    return source == "scenes" or source.startswith("coco:")


def open_annotated(source: str) -> AnnotatedSource:
    """Open a source with boxes and masks; raises `ConfigError` for another name, and `DataError`."""
    if source == "scenes":
        return scenes_source()
    kind, _, path = source.partition(":")
    if kind == "coco" and path:
        return coco_source(path)
    hint = nearest(source, ANNOTATED)
    raise ConfigError(f"data.source: '{source}' has no boxes and masks{hint}; valid: {', '.join(ANNOTATED)}")


def usable(split: AnnotatedSplit) -> NDArray[np.int64]:
    """Return the images that have an object that is no crowd; the others teach nothing and are not trained on."""
    found = [index for index, objects in enumerate(split.annotations) if not all(o["iscrowd"] for o in objects)]
    if not found:
        raise DataError(f"{split.images.where(0)}: no image of the training split has an object; annotate some")
    return np.array(found, dtype=np.int64)


def fingerprint(source: AnnotatedSource) -> str:
    """Return 64 hexadecimal digits that identify both splits and the classes."""
    parts = (source.train.content_hash, source.evaluation.content_hash, *map(str, source.categories))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
