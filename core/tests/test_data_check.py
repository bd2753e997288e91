"""`check_source` reads every image and describes what it found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitutor_core.data.check import check_source
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import fingerprint, subset_indices
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    for split, count in (("train", 300), ("val", 3)):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(count + (name == "dog")):
                mode = "L" if index == 0 else "RGB"
                shade = (index % 256, index // 256, 5 * (name == "dog") + 10 * (split == "val"))
                image = Image.new(mode, (2 + index % 3, 5), shade[2] if mode == "L" else shade)
                image.save(folder / f"{index:03}.png")
    return DataConfig(source=f"folder:{tmp_path}", image_size=8, fraction=0.1)


def test_the_manifest(config: DataConfig, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    manifest = check_source(config, progress=lambda done, total: calls.append((done, total)))
    source = open_source(config)
    pixels = [manifest[split]["pixels"] for split in ("train", "evaluation")]
    size = {"distinct": 3, "width": {"min": 2, "max": 4}, "height": {"min": 5, "max": 5}}
    assert json.loads(json.dumps(manifest)) == {
        "name": f"folder:{tmp_path.name}",
        "classes": ["cat", "dog"],
        "evaluated_on": "val",
        "train": {
            "images": 601,
            "per_class": {"min": 300, "max": 301},
            "sizes": size,
            "modes": {"L": 2, "RGB": 599},
            "pixels": pixels[0],
        },
        "evaluation": {
            "images": 7,
            "per_class": {"min": 3, "max": 4},
            "sizes": size,
            "modes": {"L": 2, "RGB": 5},
            "pixels": pixels[1],
        },
        "fingerprint": fingerprint(source, subset_indices(source.train.labels, config)),
        "subset": {"images": 60, "per_class": {"min": 30, "max": 30}},
        "notes": [],
    }
    assert pixels[0] != pixels[1]
    assert calls == sorted(calls)
    assert calls[-1] == (608, 608)


@pytest.mark.parametrize("damaged", ["train/dog/299.png", "val/cat/001.png"])
def test_a_corrupt_image_is_named(config: DataConfig, tmp_path: Path, damaged: str) -> None:
    path = tmp_path / damaged
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=f"{path}: cannot read the image"):
        check_source(config, progress=lambda *_: None)
