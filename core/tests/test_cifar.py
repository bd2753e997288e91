"""CIFAR: shards in the data root, else those of the Hub, and only if they are of the data set."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitutor_core.data.sources.cifar import CIFAR
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(root))
    return root


def write_shards(folder: Path, count: int, label: str = "label") -> Path:
    """Write an image of each of ``count`` classes to both splits, in the layout of the Hub."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(buffer, "PNG")
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = {"img": [{"bytes": buffer.getvalue(), "path": None}] * count, label: list(range(count))}
        if label == "fine_label":
            rows["coarse_label"] = [index // 5 for index in range(count)]
        pq.write_table(pa.table(rows), folder / f"{split}-00000-of-00001.parquet")
    return folder


def opened(name: str) -> Source:
    return open_source(DataConfig(source=name, image_size=32))


def test_shards_in_the_root_are_preferred_but_must_be_of_the_data_set(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the network"))
    write_shards(data_root / "cifar10", 10)
    source = opened("cifar10")
    assert (source.name, len(source.train.labels)) == ("cifar10", 10)
    assert (source.mean, source.std) == tuple(CIFAR["cifar10"].statistics)
    write_shards(data_root / "cifar10", 9)
    with pytest.raises(DataError, match="9 classes, cifar10 has 10; wrong files"):
        opened("cifar10")


@pytest.mark.parametrize(("name", "count", "label"), [("cifar10", 10, "label"), ("cifar100", 100, "fine_label")])
def test_without_them_the_hub_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int, label: str
) -> None:
    asked = []
    shards = write_shards(tmp_path / "hub", count, label)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(shards))
    source = opened(name)
    assert asked == [f"uoft-cs/{name}"]
    assert source.evaluation.labels.tolist() == list(range(count))
    assert (source.name, source.mean, source.std) == (name, *CIFAR[name].statistics)


def test_no_network_is_one_line(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    where = data_root / "uoft-cs" / "cifar100"
    with pytest.raises(
        DataError, match=f"not found in {where}, and the download failed: no route; check the name .*VITUTOR_DATA_ROOT"
    ):
        opened("cifar100")
