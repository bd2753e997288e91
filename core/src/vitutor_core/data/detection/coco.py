"""Data sets in COCO's layout: ``annotations/instances_NAME.json`` beside folders of images; read and written."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit, Annotation, Category, mask_of
from vitutor_core.data.sources.images import file_split
from vitutor_core.data.sources.locate import contents, locate, require_folder
from vitutor_core.errors import DataError
from vitutor_core.files import replace_folder

_LAYOUT = "annotations/instances_train*.json, annotations/instances_val*.json and folders of images"
_FARTHEST = 10**5
"""The largest coordinate of a polygon, in pixels: decoding takes memory for each pixel of its outline."""


def coco_source(path: str) -> AnnotatedSource:
    """Open a folder in COCO's layout: trained on ``instances_train*.json``, evaluated on ``instances_val*.json``.

    The images of ``instances_NAME.json`` are in ``NAME/`` or ``images/NAME/``. Raises `DataError` where a file is
    missing, damaged or contradicts itself, naming the first such entry.
    """
    folder = locate(path)
    require_folder(folder, _LAYOUT)
    files = [_annotation_file(folder, kind) for kind in ("train", "val")]
    (train, categories), (evaluation, others) = (_read(folder, file) for file in files)
    if categories != others:
        raise DataError(f"{folder}: its two annotation files have different categories; let them be the same")
    return AnnotatedSource(f"coco:{folder.name}", categories, train, evaluation)


def write_coco(source: AnnotatedSource, folder: Path) -> None:
    """Write a source in COCO's layout, images as PNG, into a folder that is new or holds what this wrote before."""
    with replace_folder(folder, "annotations/instances_*.json", "train/*.png", "val/*.png") as partial:
        (partial / "annotations").mkdir()
        for name, split in (("train", source.train), ("val", source.evaluation)):
            (partial / name).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for index in range(len(split)):
                file = f"{index:06d}.png"
                split.images.read(index).save(partial / name / file)
                width, height = split.sizes[index].tolist()
                images.append({"id": index + 1, "file_name": file, "width": width, "height": height})
                for annotation in split.annotations[index]:
                    annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **annotation})
            categories = [category._asdict() for category in source.categories]
            written = {"images": images, "annotations": annotations, "categories": categories}
            (partial / "annotations" / f"instances_{name}.json").write_text(json.dumps(written) + "\n")


def _annotation_file(folder: Path, kind: str) -> Path:
    found = sorted((folder / "annotations").glob(f"instances_{kind}*.json"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise DataError(f"{folder / 'annotations'}: {names}; keep one instances_{kind}*.json there")
    raise DataError(f"{folder}: no annotations/instances_{kind}*.json (it holds {contents(folder)}); needed: {_LAYOUT}")


def _read(folder: Path, file: Path) -> tuple[AnnotatedSplit, tuple[Category, ...]]:
    loaded = _load(file)
    images = _table(file, loaded, "images", _image)
    categories = _table(file, loaded, "categories", lambda entry: isinstance(entry.get("name"), str))
    if not images or not categories:
        raise DataError(f"{file}: it has {len(images)} images and {len(categories)} categories; both are needed")
    of_image: dict[int, list[Annotation]] = {number: [] for number in images}
    for entry in loaded["annotations"]:
        where = f"{file}: annotation {entry.get('id')!r}"
        image, category = entry.get("image_id"), entry.get("category_id")
        if type(image) is not int or image not in images:
            raise DataError(f"{where}: no image has the id {image!r}; remove it or add the image")
        if type(category) is not int or category not in categories:
            raise DataError(f"{where}: no category has the id {category!r}; add it to the categories")
        of_image[image].append(_annotation(entry, images[image], where))
    known = tuple(Category(number, categories[number]["name"]) for number in sorted(categories))
    if len({category.name for category in known}) < len(known):
        raise DataError(f"{file}: two categories have the same name; rename one")
    root = _image_folder(folder, file)
    names = [image["file_name"] for image in images.values()]
    split = file_split(root, names, np.zeros(len(names), dtype=np.int64))
    sizes = np.array([(image["width"], image["height"]) for image in images.values()], dtype=np.int64)
    return AnnotatedSplit(split, sizes, tuple(of_image.values())), known


def _load(file: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not valid JSON ({error}); download or export it again") from None
    for key in ("images", "annotations", "categories"):
        entries = loaded.get(key) if isinstance(loaded, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{file}: no list '{key}', as a file of COCO's instances has it; is it another kind of file?"
            )
    return loaded  # type: ignore[no-any-return]  # checked above


def _table(
    file: Path, loaded: dict[str, Any], key: str, is_valid: Callable[[dict[str, Any]], bool]
) -> dict[int, dict[str, Any]]:
    """Return the entries under ``key`` by their ids."""
    found: dict[int, dict[str, Any]] = {}
    for entry in loaded[key]:
        if type(entry.get("id")) is not int or not is_valid(entry):
            raise DataError(f"{file}: {key}: not an entry of COCO's: {json.dumps(entry)[:120]}")
        if entry["id"] in found:
            raise DataError(f"{file}: {key}: the id {entry['id']} is given twice; number them anew")
        found[entry["id"]] = entry
    return found


def _image(entry: dict[str, Any]) -> bool:
    name, sides = entry.get("file_name"), (entry.get("width"), entry.get("height"))
    if not isinstance(name, str) or not all(type(side) is int and side > 0 for side in sides):
        return False
    is_inside = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
    limit = Image.MAX_IMAGE_PIXELS
    return is_inside and (limit is None or math.prod(side for side in sides if side is not None) <= limit)


def _annotation(entry: dict[str, Any], image: dict[str, Any], where: str) -> Annotation:
    """Check an annotation and return what is used of it."""
    box: Any = entry.get("bbox")
    segmentation, crowd = entry.get("segmentation"), entry.get("iscrowd", 0)
    if not _are_numbers(box) or len(box) != 4:
        raise DataError(f"{where}: bbox is {json.dumps(box)[:80]}; four numbers are needed: x, y, width, height")
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {json.dumps(crowd)[:80]}; it is 0 or 1")
    if isinstance(segmentation, dict):
        if segmentation.get("size") != [image["height"], image["width"]]:
            raise DataError(f"{where}: its mask is not of an image of {image['width']} x {image['height']} pixels")
        mask_of(segmentation, image["width"], image["height"], where=where)  # those of crowds are read nowhere else
    elif not _are_polygons(segmentation):
        raise DataError(
            f"{where}: segmentation is neither polygons nor a run-length code; a mask is needed for each box"
        )
    area = entry.get("area", box[2] * box[3])
    if not _are_numbers([area]):
        raise DataError(f"{where}: area is {json.dumps(area)[:80]}; a number is needed")
    kept = {"category_id": entry["category_id"], "bbox": box, "segmentation": segmentation}
    return kept | {"area": area, "iscrowd": int(crowd)}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and abs(v) <= 1e9 for v in values)


def _are_polygons(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_polygon, value))


def _is_polygon(corners: Any) -> bool:
    is_closed = _are_numbers(corners) and len(corners) >= 6 and len(corners) % 2 == 0
    return is_closed and all(abs(corner) <= _FARTHEST for corner in corners)


def _image_folder(folder: Path, file: Path) -> Path:
    name = file.stem.removeprefix("instances_")
    for root in (folder / name, folder / "images" / name):
        if root.is_dir():
            return root
    raise DataError(f"{file}: no folder {folder / name} or {folder / 'images' / name} with its images")
