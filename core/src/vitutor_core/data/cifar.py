"""CIFAR-10 and CIFAR-100: from parquet shards if they are there, else from the binary distribution.

The better-known archives for Python hold pickles; the binary ones hold bytes, and are read without being extracted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data import statistics
from vitutor_core.data.images import array_split
from vitutor_core.data.locate import data_root
from vitutor_core.data.parquet import holds_shards, parquet_source
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


class Distribution(NamedTuple):
    """A binary archive; each record is ``label_bytes`` labels, of which the last counts, and 3 x 32 x 32 pixels."""

    url: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    evaluation: tuple[str, ...]
    class_names: str
    label_bytes: int
    num_classes: int
    statistics: statistics.Statistics


DISTRIBUTIONS = {
    "cifar10": Distribution(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        evaluation=("test_batch.bin",),
        class_names="batches.meta.txt",
        label_bytes=1,
        num_classes=10,
        statistics=statistics.CIFAR10,
    ),
    "cifar100": Distribution(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train=("train.bin",),
        evaluation=("test.bin",),
        class_names="fine_label_names.txt",
        label_bytes=2,
        num_classes=100,
        statistics=statistics.CIFAR100,
    ),
}


def cifar_source(name: str, config: DataConfig) -> Source:
    """Open ``cifar10`` or ``cifar100`` from ``<data root>/<name>``; the archive is downloaded there if need be.

    Raises `DataError` if the archive cannot be downloaded or its SHA-256 is not the known one.
    """
    distribution = DISTRIBUTIONS[name]
    folder = data_root() / name
    source = parquet_source(folder, name, config) if holds_shards(folder) else _binary_source(name, folder)
    if len(source.class_names) != distribution.num_classes:
        raise DataError(
            f"{folder}: {len(source.class_names)} classes, {name} has {distribution.num_classes}; wrong files"
        )
    return dataclasses.replace(source, mean=distribution.statistics.mean, std=distribution.statistics.std)


def _binary_source(name: str, folder: Path) -> Source:
    distribution = DISTRIBUTIONS[name]
    archive = folder / distribution.url.rpartition("/")[2]
    if archive.exists():
        _verify(archive, distribution.sha256)
    else:
        _download(distribution, archive)
    with tarfile.open(archive) as tar:
        names = tuple(_member(tar, distribution, distribution.class_names).decode().split())
        train = _read_split(tar, distribution, distribution.train, f"{archive}, train")
        evaluation = _read_split(tar, distribution, distribution.evaluation, f"{archive}, test")
    return Source(name, names, *distribution.statistics, train, evaluation)


def _verify(archive: Path, sha256: str) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(f"{archive}: SHA-256 is {found}, expected {sha256}; delete the file to download it again")


def _download(distribution: Distribution, archive: Path) -> None:
    from torch.hub import download_url_to_file

    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        # It writes beside the target and renames only after the hash agrees.
        download_url_to_file(
            distribution.url, str(archive), hash_prefix=distribution.sha256, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{distribution.url}: the download failed: {error}; put the file at {archive}, or set VITUTOR_DATA_ROOT"
        ) from None


def _member(tar: tarfile.TarFile, distribution: Distribution, name: str) -> bytes:
    file = tar.extractfile(f"{distribution.folder}/{name}")
    if file is None:
        raise DataError(f"{distribution.url}: '{name}' is not a file in it; this is another archive")
    return file.read()


def _read_split(tar: tarfile.TarFile, distribution: Distribution, members: tuple[str, ...], name: str) -> Split:
    content = b"".join(_member(tar, distribution, member) for member in members)
    pixels, labels = decode_records(content, distribution.label_bytes)
    return array_split(pixels, labels, name)


def decode_records(content: bytes, label_bytes: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Split binary records into pixels (N, 32, 32, 3) and labels (N,); pixels are stored as planes of R, G and B."""
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, label_bytes + 3 * 32 * 32)
    planes = records[:, label_bytes:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, label_bytes - 1].astype(np.int64)
