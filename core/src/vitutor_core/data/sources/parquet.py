"""Parquet shards in the layout of the Hugging Face Hub, local or downloaded."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitutor_core.data.sources import splits
from vitutor_core.data.sources.images import read_image
from vitutor_core.data.sources.locate import ROOT_HINT, contents, data_root, require_folder, shorten
from vitutor_core.data.sources.mapped import CONTENT_HASH, mapped, open_mapped, open_shard
from vitutor_core.data.sources.statistics import IMAGENET
from vitutor_core.data.sources.subsets import part
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError, first_line
from vitutor_core.files import file_sha256
from vitutor_core.schema import DataConfig

_LAYOUT = "train-*.parquet and validation-*.parquet or test-*.parquet"
_SHARD = re.compile(rf"({'|'.join(splits.NAMES)})(?:[-_.\d].*)?\.parquet", re.IGNORECASE)
_NUMBER = re.compile(r"-(\d+)-of-(\d+)")
_IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg")
_LABEL_COLUMNS = ("label", "labels", "target", "fine_label", "cls")


def parquet_source(folder: Path, name: str, config: DataConfig) -> Source:
    """Open a folder of shards; see `mapped` for how an image is read.

    The splits are told by the beginning of the file names, else by the folder a shard lies in. The class names are
    those of the ``huggingface`` metadata of the schema; without it they are the labels, in order.

    Raises `DataError` if shards are missing or damaged, or their columns are not those of an image data set.
    """
    require_folder(folder, _LAYOUT)
    shards, notes = _find_shards(folder)
    chosen = splits.choose(shards, config, str(folder))
    if chosen is None:
        raise DataError(f"{folder}: expected {_LAYOUT}; the folder holds {contents(folder)}")
    train = _read_split(shards[chosen.train], config)
    class_names, offset = _classes(train)
    notes = (*chosen.notes, *notes)
    if offset:
        notes += (f"{folder}: labels begin at 1; class 0 is that of label 1",)
    training = _split(train, class_names, offset)
    evaluation = part(training, np.arange(0))
    if chosen.evaluation is not None:
        found = _read_split(shards[chosen.evaluation], config)
        if found.names != train.names:
            pair = f"{chosen.train} and {chosen.evaluation}"
            raise DataError(f"{folder}: the class names of {pair} differ; use shards of one data set")
        evaluation = _split(found, class_names, offset)
    return Source(name, class_names, *IMAGENET, training, evaluation, notes, chosen.evaluation)


def hub_source(repository: str, config: DataConfig) -> Source:
    """Open a data set of the Hub, from the data root if it is there, else downloaded into the Hub's cache.

    Raises `ConfigError` if ``repository`` is not of the form OWNER/NAME, and `DataError` if it cannot be downloaded or
    holds no parquet shards of images.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"data.source: hub:{repository}: write it as hub:OWNER/NAME")
    return parquet_source(hub_folder(repository), f"hub:{repository}", config)


def hub_folder(repository: str) -> Path:
    """Return a folder with the shards of a data set of the Hub, which are downloaded if need be.

    Data sets in other formats are taken as the Hub itself converts them to parquet.
    Raises `DataError` if there are none of either kind, or if the download fails.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    local = (data_root() / repository, data_root() / repository.partition("/")[2])
    for folder in local:
        if holds_shards(folder):
            return folder
    blobs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset") / "blobs"
    known = frozenset(blobs.resolve().glob("*"))
    for revision in (None, "refs/convert/parquet"):
        try:
            folder = Path(
                snapshot_download(repository, repo_type="dataset", allow_patterns="*.parquet", revision=revision)
            )
        except RevisionNotFoundError:
            break
        except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
            raise DataError(
                f"hub:{repository}: not found in {local[0]}, and the download failed: "
                f"{first_line(error)}; check the name and the network, or put the shards there {ROOT_HINT}"
            ) from None
        _verify_downloads(folder, known)
        if holds_shards(folder):
            return folder
    raise DataError(f"hub:{repository}: it has no {_LAYOUT}, nor has the Hub converted it; choose another data set")


def _verify_downloads(folder: Path, known: Set[Path]) -> None:
    """Compare shards, but those ``known`` before, with the SHA-256 that the Hub gives: their names in its cache.

    The Hub's library compares sizes alone. Raises `DataError`, and deletes the file, so that it is downloaded again.
    """
    for shard in folder.rglob("*.parquet"):
        blob = shard.resolve()
        has_hash = re.fullmatch(r"[0-9a-f]{64}", blob.name) is not None
        if has_hash and blob not in known and (found := file_sha256(blob)) != blob.name:
            blob.unlink()
            raise DataError(f"{shard}: SHA-256 is {found}, expected {blob.name}; run it again to download it again")


def holds_shards(folder: Path) -> bool:
    """Tell whether a folder is there and holds shards of any split."""
    return folder.is_dir() and bool(_find_shards(folder)[0])


def _find_shards(folder: Path) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """Map the name of each split to its shards, in order, and return a note on shards of no split.

    Incomplete or ambiguous sets are a `DataError`.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        match = _SHARD.fullmatch(path.name)
        name = match[1] if match else path.parent.name
        if splits.is_split(name):
            found.setdefault(name, []).append(path)
        else:
            others.append(str(path.relative_to(folder)))
    for name, shards in found.items():
        parents = sorted({str(shard.parent) for shard in shards})
        if len(parents) > 1:
            raise DataError(f"{folder}: '{name}' shards in {' and '.join(parents)}; name one with parquet:PATH")
        numbers = [_NUMBER.search(shard.name) for shard in shards]
        expected = {int(number[2]) for number in numbers if number}
        if not expected and all(shard.stem.isdecimal() for shard in shards):
            expected = {int(shards[-1].stem) + 1}
        if expected and expected != {len(shards)}:
            raise DataError(f"{parents[0]}: {len(shards)} '{name}' shards of {max(expected)}; download the others")
    return found, (f"{folder}: shards of no known split passed over: {shorten(others)}",) if others else ()


@dataclass(frozen=True, eq=False)
class _ParquetImages:
    shards: tuple[Path, ...]
    starts: NDArray[np.int64]
    mapped: Path
    """Not the table itself: pickled for a worker, that would be the images."""

    def read(self, index: int) -> Image.Image:
        encoded = open_mapped(self.mapped)["image"][index].as_py()
        if encoded is None:
            raise DataError(f"{self.where(index)}: the row has no image bytes; embed the images in the shard")
        return read_image(encoded, self.where(index))

    def where(self, index: int) -> str:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return f"{self.shards[shard]}, row {int(index - self.starts[shard])}"


class _Read(NamedTuple):
    """A split as it is stored: its labels, (N,) of integers or of text, and the class names of its metadata."""

    images: _ParquetImages
    content_hash: str
    labels: NDArray[Any]
    names: tuple[str, ...] | None


def _read_split(shards: list[Path], config: DataConfig) -> _Read:
    import pyarrow.compute as pc

    columns, rows = [], [0]
    for shard in shards:
        with open_shard(shard) as file:
            columns.append(_columns(file.schema_arrow, shard, config))
            rows.append(file.metadata.num_rows)
        if columns[-1] != columns[0]:
            raise DataError(f"{shard}: its columns or classes are not those of {shards[0]}; use shards of one data set")
    image, label, kind, names = columns[0]
    path = mapped(shards, image, label, kind)
    images = _ParquetImages(tuple(shards), np.cumsum(rows[:-1]), path)
    table = open_mapped(path)
    if table["label"].null_count:
        empty = int(np.flatnonzero(pc.is_null(table["label"]).to_numpy())[0])
        raise DataError(f"{images.where(empty)}: column '{label}' holds no label; is the split unlabelled?")
    return _Read(images, table.schema.metadata[CONTENT_HASH].decode(), table["label"].to_numpy(), names)


def _columns(schema: Any, shard: Path, config: DataConfig) -> tuple[str, str, Any, tuple[str, ...] | None]:
    """Return the names of the two columns, the Arrow type of labels as they are kept, and the class names if given."""
    import pyarrow as pa

    image = _column(schema.names, "image_column", config.image_column, _IMAGE_COLUMNS, shard)
    label = _column(schema.names, "label_column", config.label_column, _LABEL_COLUMNS, shard)
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and "bytes" in {kind.field(number).name for number in range(kind.num_fields)}:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        raise DataError(f"{shard}: column '{image}' must hold the bytes of images, found {kind}")
    kind = schema.field(label).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_number = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if not is_number and not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise DataError(f"{shard}: column '{label}' must hold classes, as numbers or by name, found {kind}")
    names = _class_names(schema.metadata, label, shard)
    return image, label, pa.int64() if is_number else pa.string(), names if is_number else None


def _column(names: list[str], field: str, given: str | None, usual: tuple[str, ...], shard: Path) -> str:
    found = next((name for name in usual if name in names), None) if given is None else given
    if found not in names:
        wanted = f"'{given}'" if given is not None else " or ".join(f"'{name}'" for name in usual)
        raise DataError(f"{shard}: no column {wanted}; set data.{field} to one of {', '.join(names)}")
    return found


def _class_names(metadata: dict[bytes, bytes] | None, label: str, shard: Path) -> tuple[str, ...] | None:
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label].get("names")
    except (ValueError, TypeError, LookupError, AttributeError):
        raise DataError(f"{shard}: its 'huggingface' metadata does not describe column '{label}'; rewrite it") from None
    return tuple(names) if names else None


def _classes(train: _Read) -> tuple[tuple[str, ...], int]:
    """Return the class names, and the label of the first class."""
    labels = np.unique(train.labels)
    if train.names is not None or not len(labels):
        return train.names or (), 0
    if labels.dtype == object:
        return tuple(labels), 0
    first = int(labels[0])
    gap = np.flatnonzero(np.diff(labels) != 1)
    if first in (0, 1) and not len(gap):
        return tuple(str(label) for label in labels.tolist()), first
    odd = int(labels[gap[0] + 1]) if first in (0, 1) else first
    where = train.images.where(int(np.flatnonzero(train.labels == odd)[0]))
    before = f"after {labels[gap[0]]}" if first in (0, 1) else "as the first"
    raise DataError(f"{where}: label {odd} {before}; without class names, labels are 0, 1, 2, ... or 1, 2, 3, ...")


def _split(found: _Read, class_names: tuple[str, ...], offset: int) -> Split:
    labels = found.labels
    if labels.dtype == object:
        ids = {name: label for label, name in enumerate(class_names, offset)}
        unknown = next((index for index, name in enumerate(labels) if name not in ids), None)
        if unknown is not None:
            raise DataError(f"{found.images.where(unknown)}: class '{labels[unknown]}', which train does not have")
        labels = np.array([ids[name] for name in labels], dtype=np.int64)
    return Split(labels - offset, found.images.read, found.images.where, found.content_hash)
