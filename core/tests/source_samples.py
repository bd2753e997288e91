"""What the tests of the data sources share: images are told apart by their shade."""

from __future__ import annotations

from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source, Split
from vitutor_core.schema import DataConfig


def opened(source: str) -> Source:
    return open_source(DataConfig(source=source, image_size=8))


def shades(split: Split) -> list[int]:
    return [split.read(index).getpixel((0, 0))[0] for index in range(len(split.labels))]
