"""Shards as one Arrow file that is mapped into memory.

Parquet is compressed, so a row cannot be read by itself. The shards of a split are copied once, in a few megabytes of
memory, to a file of plain Arrow. Of its mapping, only pages that were just read are in memory; they are the page
cache's, so all processes of a machine share them and the system takes them back when it needs to.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from vitutor_core.data.sources.locate import user_cache
from vitutor_core.errors import DataError, ResourceError
from vitutor_core.files import atomic, file_sha256

CONTENT_HASH = b"content_hash"
"""Key of the schema's metadata: SHA-256 of the shards' SHA-256s."""
_ROWS = 256
_LARGE = 2**30


def mapped(shards: Sequence[Path], image: str, label: str, kind: Any) -> Path:
    """Return the Arrow file of ``shards``, made if need be.

    Its columns are ``image``, of large_binary, and ``label``, of the Arrow type ``kind``. It lies in
    ``$VITUTOR_CACHE``, else beside the shards or, where these are read-only, in the user's cache, and is found again by
    the shards' paths, sizes and times.

    Raises `DataError` if a shard cannot be read, and `ResourceError` if the file cannot be written.
    """
    stats = [(str(shard), shard.stat()) for shard in shards]
    key = json.dumps([image, label, str(kind), [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])
    folder = _cache_of(shards[0].parent)
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.arrow"
    if _is_whole(path):
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # those that wait find the file made
            if not _is_whole(path):
                _write(path, shards, image, label, kind)
    except ResourceError as error:
        raise ResourceError(f"{error}; or let VITUTOR_CACHE name a folder with room for it") from None
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot write a copy of {shards[0].parent} there: {error.strerror or error}; let VITUTOR_CACHE "
            "name a folder with room for it"
        ) from None
    return path


def _cache_of(shards: Path) -> Path:
    beside = shards / ".arrow"
    is_chosen = bool(os.environ.get("VITUTOR_CACHE"))
    return beside if not is_chosen and os.access(beside if beside.exists() else shards, os.W_OK) else user_cache()


def _is_whole(path: Path) -> bool:
    """Return whether the file is there with its end, where Arrow keeps the table of contents."""
    import pyarrow as pa

    try:
        open_mapped(path)
    except (pa.ArrowException, OSError):
        return False
    return True


@cache
def open_mapped(path: Path) -> Any:
    """Return the `pyarrow.Table` of a file of `mapped`; its columns lie in the mapped file."""
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _write(path: Path, shards: Sequence[Path], image: str, label: str, kind: Any) -> None:
    import pyarrow as pa

    size = sum(shard.stat().st_size for shard in shards)
    if size > shutil.disk_usage(path.parent).free:
        raise OSError(f"less than {size / 2**30:.1f} GiB are free")
    if size > _LARGE:
        warnings.warn(f"{shards[0].parent}: copied once to {path}, {size / 2**30:.1f} GiB", stacklevel=3)
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(bytes.fromhex(file_sha256(shard)))
    schema = pa.schema([("image", pa.large_binary()), ("label", kind)], metadata={CONTENT_HASH: digest.hexdigest()})
    with (
        atomic(path, shared=True) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        for columns in _batches(shards, image, label, kind):
            writer.write_batch(pa.record_batch(columns, schema=schema))


def _batches(shards: Sequence[Path], image: str, label: str, kind: Any) -> Iterator[list[Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    for shard in shards:
        with open_shard(shard, buffer_size=2**20, pre_buffer=False) as file:
            for batch in file.iter_batches(_ROWS, columns=[image, label], use_threads=False):
                images, labels = batch[image], batch[label]
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                if pa.types.is_dictionary(labels.type):
                    labels = labels.dictionary_decode()
                yield [images.cast(pa.large_binary()), labels.cast(kind)]


@contextmanager
def open_shard(shard: Path, **options: Any) -> Iterator[Any]:
    """Yield the `pyarrow.parquet.ParquetFile` of a shard; raises `DataError` where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(shard, **options) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{shard}: cannot read the shard: {reason}; download it again") from None
