"""Parquet shards in the layout of the Hugging Face Hub, local or downloaded."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitutor_core.data.images import read_image
from vitutor_core.data.locate import contents, data_root, require_folder
from vitutor_core.data.statistics import IMAGENET
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError

_LAYOUT = "train-*.parquet and validation-*.parquet or test-*.parquet"
_SHARD = re.compile(r"(train|validation|valid|val|test)(?:-.*)?\.parquet")
_NUMBER = re.compile(r"-(\d+)-of-(\d+)")
_EVALUATION = ("validation", "valid", "val", "test")
"""In order of preference: where the Hub has both, the labels of the test split are often withheld."""

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label")


def parquet_source(folder: Path, name: str) -> Source:
    """Open a folder of shards; the encoded images are held in memory, so that any row is read at once.

    The splits are told by the prefix of the file names, the class names by the ``huggingface`` metadata of the schema
    (without it they are the label numbers).

    Raises `DataError` if shards are missing or damaged, or their columns are not the Hub's of an image data set.
    """
    require_folder(folder, _LAYOUT)
    shards = _find_shards(folder)
    evaluation_prefix = next((prefix for prefix in _EVALUATION if prefix in shards), None)
    if "train" not in shards or evaluation_prefix is None:
        raise DataError(f"{folder}: expected {_LAYOUT}; the folder holds {contents(folder)}")
    train, class_names = _read_split(shards["train"])
    evaluation, evaluation_names = _read_split(shards[evaluation_prefix])
    if class_names != evaluation_names:
        raise DataError(
            f"{folder}: the class names of train and {evaluation_prefix} differ; use shards of one data set"
        )
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(train.labels.max(initial=0)) + 1))
    return Source(name, class_names, IMAGENET.mean, IMAGENET.std, train, evaluation)


def hub_source(repository: str) -> Source:
    """Open a data set of the Hub, from the data root if it is there, else downloaded into the Hub's cache.

    Raises `ConfigError` if ``repository`` is not of the form OWNER/NAME, and `DataError` if it cannot be downloaded or
    holds no parquet shards of images.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ConfigError(f"data.source: hub:{repository}: write it as hub:OWNER/NAME")
    local = (data_root() / repository, data_root() / repository.partition("/")[2])
    folder = next((folder for folder in local if holds_shards(folder)), None)
    return parquet_source(folder or _download(repository), f"hub:{repository}")


def holds_shards(folder: Path) -> bool:
    """Tell whether a folder is there and holds shards of any split."""
    return folder.is_dir() and bool(_find_shards(folder))


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    try:
        folder = Path(snapshot_download(repository, repo_type="dataset", allow_patterns="*.parquet"))
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise DataError(
            f"hub:{repository}: not found in {data_root() / repository}, and the download failed: "
            f"{str(error).strip().splitlines()[0]}; check the name and the network, or put the shards there"
        ) from None
    if not holds_shards(folder):
        raise DataError(f"hub:{repository}: it has no {_LAYOUT}; try timm:hfds/{repository}")
    return folder


def _find_shards(folder: Path) -> dict[str, list[Path]]:
    """Map the prefix of each split to its shards, in order; incomplete or ambiguous sets are a `DataError`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.parquet")):
        match = _SHARD.fullmatch(path.name)
        if match and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found.setdefault(match[1], []).append(path)
    for prefix, shards in found.items():
        parents = sorted({str(shard.parent) for shard in shards})
        if len(parents) > 1:
            raise DataError(f"{folder}: '{prefix}' shards in {' and '.join(parents)}; name one with parquet:PATH")
        numbers = [_NUMBER.search(shard.name) for shard in shards]
        expected = {int(number[2]) for number in numbers if number}
        if expected and expected != {len(shards)}:
            raise DataError(f"{parents[0]}: {len(shards)} '{prefix}' shards of {max(expected)}; download the others")
    return found


@dataclass(frozen=True, eq=False)
class _ParquetImages:
    shards: tuple[Path, ...]
    starts: NDArray[np.int64]
    columns: tuple[Any, ...]
    """Per shard, the encoded images: a pyarrow ChunkedArray of binary."""

    def read(self, index: int) -> Image.Image:
        shard, row = self._position(index)
        encoded = self.columns[shard][row].as_py()
        if encoded is None:
            raise DataError(f"{self.where(index)}: the row has no image bytes; embed the images in the shard")
        return read_image(encoded, self.where(index))

    def where(self, index: int) -> str:
        shard, row = self._position(index)
        return f"{self.shards[shard]}, row {row}"

    def _position(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.starts, index, side="right")) - 1
        return shard, int(index - self.starts[shard])


def _read_split(shards: list[Path]) -> tuple[Split, tuple[str, ...] | None]:
    columns, labels, names = [], [], None
    digest = hashlib.sha256()
    for shard in shards:
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
        column, shard_labels, names = _read_shard(shard)
        columns.append(column)
        labels.append(shard_labels)
    starts = np.cumsum([0, *(len(part) for part in labels[:-1])])
    images = _ParquetImages(tuple(shards), starts, tuple(columns))
    split = Split(np.concatenate(labels), images.read, images.where, digest.hexdigest())
    return split, names


def _read_shard(shard: Path) -> tuple[Any, NDArray[np.int64], tuple[str, ...] | None]:
    """Return the encoded images, the labels (N,) and the class names of one shard."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(shard)
        image = _column(schema.names, _IMAGE_COLUMNS, shard)
        label = _column(schema.names, _LABEL_COLUMNS, shard)
        if not pa.types.is_struct(schema.field(image).type):
            raise DataError(f"{shard}: column '{image}' must be a struct of bytes and path, as the Hub stores images")
        table = pq.read_table(shard, columns=[image, label])
        labels = table[label].combine_chunks()
        if not pa.types.is_integer(labels.type) or labels.null_count:
            raise DataError(f"{shard}: column '{label}' must hold an integer in every row, found {labels.type}")
        encoded = pc.struct_field(table[image], "bytes")
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{shard}: cannot read the shard: {reason}; download it again") from None
    return encoded, labels.to_numpy().astype(np.int64), _class_names(schema.metadata, label, shard)


def _column(names: list[str], wanted: tuple[str, ...], shard: Path) -> str:
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise DataError(f"{shard}: no column '{wanted[0]}' or '{wanted[1]}'; the columns are {', '.join(names)}")
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
