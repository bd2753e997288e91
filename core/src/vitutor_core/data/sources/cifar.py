"""CIFAR-10 and CIFAR-100, from parquet shards in the data root or from the Hub.

The better-known archives hold pickles, which are never loaded.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from vitutor_core.data.sources import statistics
from vitutor_core.data.sources.parquet import hub_folder, parquet_source
from vitutor_core.data.types import Source
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


class Published(NamedTuple):
    """Where the authors' university keeps a data set on the Hub, and what is known of it."""

    repository: str
    num_classes: int
    statistics: statistics.Statistics


CIFAR = {
    "cifar10": Published("uoft-cs/cifar10", 10, statistics.CIFAR10),
    "cifar100": Published("uoft-cs/cifar100", 100, statistics.CIFAR100),
}


def cifar_source(name: str, config: DataConfig) -> Source:
    """Open ``cifar10`` or ``cifar100`` from ``<data root>/<name>`` or as `hub_folder` finds it."""
    known = CIFAR[name]
    folder = hub_folder(known.repository)
    source = parquet_source(folder, name, config)
    if len(source.class_names) != known.num_classes:
        raise DataError(f"{folder}: {len(source.class_names)} classes, {name} has {known.num_classes}; wrong files")
    return dataclasses.replace(source, mean=known.statistics.mean, std=known.statistics.std)
