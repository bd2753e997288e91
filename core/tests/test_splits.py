"""Splits go by many names; the one that is evaluated on is chosen, said, or held out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from core.tests.source_samples import shades
from core.tests.test_parquet import write_shard
from vitutor_core.data.check import check_source
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig


def write_folder(root: Path, **splits: int) -> None:
    """Write four images of each split, from a shade on; a split without a name is the root itself."""
    for split, shade in splits.items():
        for number in range(4):
            path = root / split.removeprefix("_") / ("ant", "bee")[number // 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (3, 2), shade + number).save(path)


def write_shards(root: Path, **splits: int) -> None:
    for split, shade in splits.items():
        write_shard(root / f"{split}-00000-of-00001.parquet", [0, 0, 1, 1], [shade + number for number in range(4)])


def write_folders_of_shards(root: Path, **splits: int) -> None:
    """Write the layout to which the Hub converts its data sets."""
    for split, shade in splits.items():
        for shard in range(2):
            first = shade + 2 * shard
            write_shard(root / "default" / split / f"{shard:04}.parquet", [shard] * 2, [first, first + 1])


WRITERS = {"folder": write_folder, "parquet": write_shards, "parquet ": write_folders_of_shards}


def opened(kind: str, **fields: object) -> Source:
    return open_source(DataConfig(source=f"{kind.strip()}:pets", image_size=8, **fields))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("name", ["val", "valid", "Validation", "DEV", "eval", "Test"])
def test_names_of_splits(data_root: Path, kind: str, train: str, name: str) -> None:
    WRITERS[kind](data_root / "pets", **{train: 0, name: 100})
    source = opened(kind)
    assert shades(source.train) == [0, 1, 2, 3]
    assert shades(source.evaluation) == [100, 101, 102, 103]
    assert source.train.labels.tolist() == source.evaluation.labels.tolist() == [0, 0, 1, 1]
    assert source.evaluated_on == name
    config = DataConfig(source=f"{kind.strip()}:pets", image_size=8)
    manifest = check_source(config, progress=lambda *_: None)
    assert (manifest["evaluated_on"], manifest["notes"]) == (name, [])


@pytest.mark.parametrize("kind", WRITERS)
def test_of_several_splits_the_one_used_is_said_and_another_can_be_named(data_root: Path, kind: str) -> None:
    WRITERS[kind](data_root / "pets", train=0, Test=200, validation=100)
    note = r"pets: evaluated on 'validation'; there is 'Test' too, which data\.eval_split=Test takes"
    with pytest.warns(UserWarning, match=note):
        assert shades(opened(kind).evaluation)[0] == 100
    for name in ("test", "Test", "TEST"):
        assert shades(opened(kind, eval_split=name).evaluation)[0] == 200
    assert shades(opened(kind, eval_split="validation").evaluation)[0] == 100
    for name, message in {
        "tests": "has no 'tests' to evaluate on; did you mean 'Test'",
        "val": "has no 'val' to evaluate on; splits: validation, Test",
        "train": "has no 'train' to evaluate on; splits: validation, Test",
    }.items():
        with pytest.raises(ConfigError, match=f"data.eval_split: .*{message}"):
            opened(kind, eval_split=name)
    fingerprints = {
        DataConfig(source="x", image_size=8, eval_split=name).fingerprint() for name in (None, "test", "validation")
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize("kind", WRITERS)
def test_a_training_split_alone_is_enough_with_a_holdout(data_root: Path, kind: str) -> None:
    WRITERS[kind](data_root / "pets", train=0)
    source = opened(kind, holdout=0.5)
    assert sorted(shades(source.train) + shades(source.evaluation)) == [0, 1, 2, 3]
    with pytest.raises(DataError, match=r"pets: expected train.* holds (train|default)"):
        opened(kind)
    WRITERS[kind](data_root / "pets", test=100)
    again = opened(kind, holdout=0.5)
    assert again.train.content_hash == source.train.content_hash
    assert again.evaluation.content_hash == source.evaluation.content_hash


def test_folders_of_classes_are_enough_with_a_holdout(data_root: Path) -> None:
    write_folder(data_root / "pets", _=0)
    (data_root / "pets" / "bee").rename(data_root / "pets" / "train")  # the railway's
    source = opened("folder", holdout=0.5)
    assert source.class_names == ("ant", "train")
    assert sorted(shades(source.train) + shades(source.evaluation)) == [0, 1, 2, 3]
    (data_root / "pets" / "train").rename(data_root / "pets" / "bee")
    with pytest.raises(DataError, match=r"holds ant, bee; if these are classes, .* data\.holdout=0\.2"):
        opened("folder")


def test_a_validation_split_is_no_class(data_root: Path) -> None:
    write_folder(data_root / "pets", ttrain=0, val=100)
    with pytest.raises(DataError, match=r"expected train/.*holds ttrain, val$"):  # without advice that is followed
        opened("folder", holdout=0.5)


@pytest.mark.parametrize("kind", WRITERS)
def test_two_spellings_of_a_split_are_refused(data_root: Path, kind: str) -> None:
    WRITERS[kind](data_root / "pets", train=0, val=100, Val=200)
    with pytest.raises(DataError, match="splits 'Val' and 'val' differ only in case"):
        opened(kind)


@pytest.mark.parametrize("field", ["eval_split", "image_column", "label_column"])
@pytest.mark.parametrize("source", ["digits", "cifar10", "torchvision:mnist", "domainnet:real"])
def test_what_a_source_does_not_read_is_refused(source: str, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{field}: {source} has no choice of it; it is for .*parquet"):
        open_source(DataConfig(source=source, image_size=8, **{field: "test"}))
    with pytest.raises(ConfigError, match="holdout and eval_split exclude each other"):
        DataConfig(image_size=8).changed(["holdout=0.2", "eval_split=test"])


def test_shards_that_are_lost_are_named(data_root: Path) -> None:
    write_folders_of_shards(data_root / "pets", train=0, test=100)
    write_shard(data_root / "pets" / "default" / "unsupervised" / "0000.parquet", [0], [1])
    with pytest.warns(UserWarning, match="shards of no known split passed over: default/unsupervised/0000.parquet"):
        opened("parquet")
    write_shard(data_root / "pets" / "default" / "train" / "0003.parquet", [0], [1])
    with pytest.raises(DataError, match="3 'train' shards of 4; download the others"):
        opened("parquet")
