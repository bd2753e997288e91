"""Parquet shards in the Hub's layout, written on the spot; and what is said when they are not as they should be."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import RevisionNotFoundError
from PIL import Image

from core.tests.source_samples import opened, shades
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.files import file_sha256

pytestmark = pytest.mark.usefixtures("data_root")
NAMES = ["ant", "bee"]


def write_shard(
    path: Path,
    labels: list[int],
    greys: list[int],
    *,
    image: str = "image",
    label: str = "label",
    names: list[str] | None = NAMES,
) -> None:
    rows = []
    for shade in greys:
        buffer = io.BytesIO()
        Image.new("RGB", (3, 2), (shade, shade, shade)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{shade}.png"})
    table = pa.table({image: rows, label: labels, "extra": labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=2)


@pytest.fixture
def bugs(data_root: Path) -> Path:
    folder = data_root / "bugs"
    write_shard(folder / "data" / "train-00000-of-00002.parquet", [1, 0, 1], [1, 2, 3])
    write_shard(folder / "data" / "train-00001-of-00002.parquet", [0, 1], [4, 5])
    write_shard(folder / "data" / "test-00000-of-00001.parquet", [1, 0], [6, 7])
    return folder


def test_parquet_shards_are_read_in_order(bugs: Path) -> None:
    source = opened("parquet:bugs")
    assert (source.name, source.class_names) == ("parquet:bugs", ("ant", "bee"))
    assert source.train.labels.tolist() == [1, 0, 1, 0, 1]
    assert source.train.labels.dtype == np.int64
    assert shades(source.train) == [1, 2, 3, 4, 5]
    assert shades(source.evaluation) == [6, 7]
    assert source.train.where(4) == f"{bugs / 'data' / 'train-00001-of-00002.parquet'}, row 1"


def test_validation_is_preferred_to_test(bugs: Path) -> None:
    write_shard(bugs / "data" / "validation-00000-of-00001.parquet", [0, 1], [8, 9])
    with pytest.warns(UserWarning, match="evaluated on 'validation'; there is 'test' too"):
        assert shades(opened("parquet:bugs").evaluation) == [8, 9]


def test_other_column_names_of_the_hub(bugs: Path) -> None:
    for split in ("train", "test"):
        write_shard(bugs / "fine" / f"{split}.parquet", [0, 1], [1, 2], image="img", label="fine_label")
    assert opened("parquet:bugs/fine").class_names == ("ant", "bee")


def test_without_metadata_classes_are_numbered(data_root: Path) -> None:
    for split in ("train", "test"):
        write_shard(data_root / "plain" / f"{split}.parquet", [0, 2, 1], [1, 2, 3], names=None)
    assert opened("parquet:plain").class_names == ("0", "1", "2")


def test_numbers_from_1_in_one_split_and_their_text_in_the_other(data_root: Path) -> None:
    write_shard(data_root / "mixed" / "train.parquet", [1, 2, 3, 1], [1, 2, 3, 4], names=None)
    write_shard(data_root / "mixed" / "test.parquet", [3, 2, 1], [5, 6, 7], names=None)
    rewrite(data_root / "mixed" / "test.parquet", label=["3", "2", "1"])
    with pytest.warns(UserWarning, match="labels begin at 1"):
        source = opened("parquet:mixed")
    assert source.class_names == ("1", "2", "3")
    assert source.train.labels.tolist() == [0, 1, 2, 0]
    assert source.evaluation.labels.tolist() == [2, 1, 0]


def rewrite(shard: Path, **columns: object) -> None:
    table = pq.read_table(shard)
    for name, values in columns.items():
        table = table.drop([name])
        if values is not None:
            table = table.append_column(name, pa.array(values))
    pq.write_table(table, shard)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": None}, r"no column 'image' or 'img' or .*; set data.image_column to one of label, extra"),
        ({"label": None}, r"no column 'label' or .*'fine_label' or .*; set data.label_column to one of image, extra"),
        ({"image": ["x", "y"]}, r"column 'image' must hold the bytes of images, found string"),
        ({"image": [{"path": "x"}, {"path": "y"}]}, r"column 'image' must hold the bytes of images, found struct<path"),
        ({"label": ["a", "b"]}, r"the class names of train and test differ"),
        ({"label": [0.5, 1.0]}, r"column 'label' must hold classes, as numbers or by name, found double"),
        ({"label": [0, None]}, r"row 1: column 'label' holds no label; is the split unlabelled\?"),
        ({"label": [0, 2]}, r"test-00000-of-00001.parquet, row 1: label 2 of 2 classes"),
        ({"label": [-1, -1]}, r"row 0: label -1 of 2 classes; is the split unlabelled\?"),
    ],
)
def test_wrong_columns_are_refused(bugs: Path, columns: dict[str, object], message: str) -> None:
    rewrite(bugs / "data" / "test-00000-of-00001.parquet", **columns)
    with pytest.raises(DataError, match=message):
        opened("parquet:bugs")


def test_a_row_without_bytes_and_a_damaged_image_are_named(bugs: Path) -> None:
    shard = bugs / "data" / "test-00000-of-00001.parquet"
    rewrite(shard, image=[{"bytes": None, "path": "x"}, {"bytes": b"junk", "path": "y"}])
    split = opened("parquet:bugs").evaluation
    with pytest.raises(DataError, match=r"00001\.parquet, row 0: the row has no image bytes"):
        split.read(0)
    with pytest.raises(DataError, match=r"00001\.parquet, row 1: cannot read the image"):
        split.read(1)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_shards_are_refused(bugs: Path, share: float) -> None:
    shard = bugs / "data" / "train-00001-of-00002.parquet"
    shard.write_bytes(shard.read_bytes()[: int(share * shard.stat().st_size)])
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: cannot read the shard"):
        opened("parquet:bugs")


def test_incomplete_ambiguous_and_foreign_sets_of_shards_are_refused(bugs: Path, data_root: Path) -> None:
    write_shard(bugs / "other" / "test-00000-of-00001.parquet", [0, 1], [1, 2])
    with pytest.raises(DataError, match=r"'test' shards in .*data and .*other; name one with parquet:PATH"):
        opened("parquet:bugs")
    shutil.rmtree(bugs / "other")
    write_shard(bugs / "data" / "test-00000-of-00001.parquet", [0, 1], [1, 2], names=["bee", "ant"])
    with pytest.raises(DataError, match="the class names of train and test differ"):
        opened("parquet:bugs")
    (bugs / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="1 'train' shards of 2; download the others"):
        opened("parquet:bugs")
    (bugs / "data" / "train-00000-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"bugs: expected train-\*.parquet .*; the folder holds data"):
        opened("parquet:bugs")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        opened("parquet:nowhere")


def test_damaged_metadata_is_refused(bugs: Path) -> None:
    shard = bugs / "data" / "test-00000-of-00001.parquet"
    for metadata in ("{", "{}", '{"info": null}', '{"info": {"features": {"label": 3}}}'):
        pq.write_table(pq.read_table(shard).replace_schema_metadata({"huggingface": metadata}), shard)
        with pytest.raises(DataError, match="its 'huggingface' metadata does not describe column 'label'"):
            opened("parquet:bugs")


def test_the_hash_of_shards_follows_their_bytes(bugs: Path, data_root: Path) -> None:
    first = opened("parquet:bugs")
    shutil.copytree(bugs, data_root / "copy")
    assert opened("parquet:copy").train.content_hash == first.train.content_hash
    write_shard(data_root / "copy" / "data" / "train-00001-of-00002.parquet", [0, 1], [4, 6])
    second = opened("parquet:copy")
    assert second.train.content_hash != first.train.content_hash
    assert second.evaluation.content_hash == first.evaluation.content_hash


def test_splits_travel_to_spawned_workers(bugs: Path) -> None:
    split = opened("parquet:bugs").train
    copy = pickle.loads(pickle.dumps(split))  # noqa: S301 - our own object
    assert copy.where(3) == split.where(3)
    assert shades(copy) == shades(split)


def test_the_hub_looks_in_the_data_root_first(bugs: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("went to the network"))
    assert len(opened("hub:someone/bugs").train.labels) == 5
    write_shard(data_root / "someone" / "bugs" / "train.parquet", [0, 1], [1, 2])
    write_shard(data_root / "someone" / "bugs" / "test.parquet", [0, 1], [1, 2])
    assert len(opened("hub:someone/bugs").train.labels) == 2


def test_the_hub_downloads_only_parquet(bugs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    empty = tmp_path / "empty"
    empty.mkdir()

    def download(repository: str, *, revision: str | None, **options: object) -> str:
        assert options == {"repo_type": "dataset", "allow_patterns": "*.parquet"}
        asked.append((repository, revision))
        if repository == "a/wasps" and revision:
            raise RevisionNotFoundError("no such revision", response=mock.Mock())
        return str(bugs if repository == "a/flies" or (repository == "a/moths" and revision) else empty)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = opened("hub:a/flies")
    assert (source.name, len(source.train.labels)) == ("hub:a/flies", 5)
    assert asked == [("a/flies", None)]
    # what is not parquet is there as the Hub's own conversion
    assert len(opened("hub:a/moths").train.labels) == 5
    assert asked[1:] == [("a/moths", None), ("a/moths", "refs/convert/parquet")]
    for name in ("a/wasps", "a/ants"):
        with pytest.raises(DataError, match=rf"hub:{name}: it has no train-.*, nor has the Hub converted it"):
            opened(f"hub:{name}")


def test_a_download_is_compared_with_the_hash_that_the_hub_gives(
    bugs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        for shard in bugs.rglob("*.parquet"):
            blob = tmp_path / "blobs" / file_sha256(shard)
            blob.parent.mkdir(exist_ok=True)
            blob.write_bytes(shard.read_bytes() + damage)
            link = tmp_path / "snapshot" / shard.name
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(blob)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    damage = b"x"
    with pytest.raises(DataError, match=r"\.parquet: SHA-256 is [0-9a-f]{64}, expected .*; run it again"):
        opened("hub:a/flies")
    damage = b""
    assert len(opened("hub:a/flies").train.labels) == 5


def test_a_failed_download_says_where_it_looked(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("no route\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(DataError, match=rf"not found in {data_root}/a/b, and the download failed: no route; check"):
        opened("hub:a/b")
    with pytest.raises(ConfigError, match="write it as hub:OWNER/NAME"):
        opened("hub:mnist")
