"""Images with objects as COCO describes them, and their masks."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitutor_core.data.types import Split
from vitutor_core.errors import ConfigError, DataError

Annotation = dict[str, Any]
"""Of an object, as in COCO's files: category_id, bbox (x, y, width, height), segmentation, iscrowd and area."""


class Category(NamedTuple):
    """A class of objects; its label is its position in the order of ids."""

    id: int
    name: str


@dataclass(frozen=True, eq=False)
class AnnotatedSplit:
    """Images and, for each, its objects, crowd regions included.

    ``images`` has no labels that mean something; ``sizes`` (N, 2) are widths and heights in pixels.
    """

    images: Split
    sizes: NDArray[np.int64]
    annotations: tuple[list[Annotation], ...]

    def __len__(self) -> int:
        return len(self.annotations)

    def read(self, index: int) -> Image.Image:
        """Decode an image; raises `DataError` where its size is not the one that its annotations are for."""
        image = self.images.read(index)
        wanted = tuple(self.sizes[index].tolist())
        if image.size != wanted:
            raise DataError(
                f"{self.images.where(index)}: {image.width} x {image.height} pixels, and its annotations are for "
                f"{wanted[0]} x {wanted[1]}; put the annotated file there"
            )
        return image

    def objects(self, index: int) -> Iterator[tuple[Annotation, NDArray[np.bool_]]]:
        """Yield the objects of an image that are no crowds and have a pixel in it, each with its mask (H, W)."""
        width, height = self.sizes[index].tolist()
        for annotation in self.annotations[index]:
            if not annotation["iscrowd"]:
                mask = mask_of(annotation["segmentation"], width, height, where=self.images.where(index))
                if mask.any():
                    yield annotation, mask

    @property
    def content_hash(self) -> str:
        """Identify images and annotations."""
        digest = hashlib.sha256(self.images.content_hash.encode())
        digest.update(self.sizes.astype("<i8").tobytes())
        for objects in self.annotations:
            digest.update(json.dumps(objects, sort_keys=True).encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class AnnotatedSource:
    """A data set for detection: its classes and its two splits."""

    name: str
    categories: tuple[Category, ...]
    train: AnnotatedSplit
    evaluation: AnnotatedSplit

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)


def coco_module(name: str) -> ModuleType:
    """Import a module of faster-coco-eval; raises `ConfigError` where the optional package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError("detection needs faster-coco-eval; pip install 'vitutor-core[detect]'") from None


def masks_module() -> ModuleType:
    """Return COCO's run-length masks; raises as `coco_module` does."""
    return coco_module("faster_coco_eval.core.mask")


def mask_of(segmentation: Any, width: int, height: int, *, where: str) -> NDArray[np.bool_]:
    """Decode polygons or a run-length code to a mask (height, width); raises `DataError` for a damaged code."""
    masks = masks_module()
    try:
        if isinstance(segmentation, list):
            code = masks.merge(masks.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            code = masks.frPyObjects(segmentation, height, width)
        else:
            code = segmentation
        return np.asarray(masks.decode(code), dtype=np.bool_)
    except (ValueError, TypeError, LookupError, OverflowError, RuntimeError) as error:
        raise DataError(f"{where}: a mask cannot be decoded ({error}); repair its segmentation") from None


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the run-length code of a mask (H, W), as COCO writes it to JSON."""
    code = masks_module().encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box around the pixels of a mask that has some: left, top, right, bottom, the last two exclusive."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
