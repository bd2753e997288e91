"""Sources of some of their classes, and DomainNet's lists."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitutor_core.data.sources import domainnet
from vitutor_core.data.sources.classes import read_class_list
from vitutor_core.data.sources.open import open_source
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(source, **fields):
    return open_source(DataConfig(source=source, image_size=8, **fields))


def pixels(split):
    return [np.asarray(split.read(index)).tobytes() for index in range(len(split.labels))]


# --- class lists


def test_imagenet100_is_the_list_of_the_literature():
    names = read_class_list("imagenet100")
    assert len(names) == 100
    text = "".join(f"{name}\n" for name in sorted(names))
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "5ee5db69d488bb799a286d8e181801c3d02798776c1ce9203e5450f64e086e07"
    )


def test_kept_classes_have_their_images_and_new_labels():
    whole, part = opened("digits"), opened("digits", class_list=("7", "2", "5"))
    assert part.class_names == ("2", "5", "7")  # in the source's order
    for all_, some in ((whole.train, part.train), (whole.evaluation, part.evaluation)):
        kept = np.flatnonzero(np.isin(all_.labels, [2, 5, 7]))
        assert [int(part.class_names[label]) for label in some.labels] == all_.labels[kept].tolist()
        every = pixels(all_)
        assert pixels(some) == [every[index] for index in kept]
        assert some.where(3) == all_.where(int(kept[3]))


def test_the_list_is_part_of_the_fingerprint():
    hashes = [
        opened("digits", class_list=names).train.content_hash for names in (None, ("1", "2"), ("1", "3"), ("2", "1"))
    ]
    assert len(set(hashes)) == 3
    assert hashes[1] == hashes[3]


def test_a_file_of_names(data_root):
    (data_root / "few.txt").write_text("3 three\n\n8\n")
    assert read_class_list("few.txt") == ("3", "8")
    assert opened("digits", class_list="few.txt").class_names == ("3", "8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("imagenet1000", "No such file or directory; name a file of class names, or imagenet100"),
        (("1", "one"), "digits has no classes one"),
        (("1", "2", "1"), "data.class_list has 1 twice"),
        ((), "data.class_list is empty"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(ConfigError) as error:
        opened("digits", class_list=given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_of_imagenet_needs_all_classes_of_the_list(data_root):
    for split in ("train", "val"):
        for name in ("n01558993", "n01692333"):
            (data_root / "imagenet" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(data_root / "imagenet" / split / name / "0.png")
    with pytest.raises(ConfigError, match=r"has no classes n01729322, .* and 92 more"):
        opened("folder:imagenet", class_list="imagenet100")
    assert opened("folder:imagenet", class_list=("n01692333",)).train.labels.tolist() == [0]


# --- DomainNet


def write_domain(root: Path, *, train: list[str], test: list[str]) -> None:
    for name, lines in (("train", train), ("test", test)):
        (root / "domainnet").mkdir(exist_ok=True)
        (root / "domainnet" / f"sketch_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        for line in lines:
            path = root / "domainnet" / line.rpartition(" ")[0]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (len(lines), 0, 0)).save(path)


TRAIN = ["sketch/ant/a.png 0", "sketch/big cat/b.png 1", "sketch/ant/c.png 0"]
TEST = ["sketch/big cat/d.png 1", "sketch/ant/e.png 0"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(domainnet, "IMAGES", {"sketch": (3, 2), "real": (3, 2)})
    monkeypatch.setattr(domainnet, "NUM_CLASSES", 2)


def test_a_domain_is_read_by_its_lists(data_root, small):
    write_domain(data_root, train=TRAIN, test=TEST)
    source = opened("domainnet:sketch")
    assert source.class_names == ("ant", "big cat")
    assert source.train.labels.tolist() == [0, 1, 0]
    assert source.evaluation.labels.tolist() == [1, 0]
    assert source.train.where(1) == str(data_root / "domainnet/sketch/big cat/b.png")
    assert source.evaluation.read(0).getpixel((0, 0)) == (2, 0, 0)


def test_the_official_numbers():
    assert {name: sum(numbers) for name, numbers in domainnet.IMAGES.items()} == {
        "clipart": 48_129,
        "infograph": 51_605,
        "painting": 72_266,
        "quickdraw": 172_500,
        "real": 172_947,
        "sketch": 69_128,
    }
    assert domainnet.NUM_CLASSES == 345


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (TRAIN[:2], "2 images, the official list has 3"),
        ([*TRAIN[:2], "sketch/ant/c.png"], "line 3: expected"),
        ([*TRAIN[:2], "sketch/../../c.png 0"], "line 3: expected"),
        ([*TRAIN[:2], "sketch/bee/c.png 0"], "line 3: label 0 is bee here and ant before"),
        ([*TRAIN[:2], "sketch/bee/c.png 2"], "name 3 classes, DomainNet has 2"),
    ],
)
def test_other_lists_are_refused(data_root, small, train, message):
    write_domain(data_root, train=TRAIN, test=TEST)
    (data_root / "domainnet" / "sketch_train.txt").write_text("".join(f"{line}\n" for line in train))
    (data_root / "domainnet" / "sketch" / "bee").mkdir()
    Image.new("RGB", (4, 4)).save(data_root / "domainnet" / "sketch" / "bee" / "c.png")
    with pytest.raises(DataError) as error:
        opened("domainnet:sketch")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named(data_root, small):
    with pytest.raises(ConfigError, match=r"no domainnet:skech; did you mean 'sketch'"):
        opened("domainnet:skech")
    with pytest.raises(DataError, match=r"should hold sketch_train\.txt, sketch_test\.txt and the folder sketch"):
        opened("domainnet:sketch")
    write_domain(data_root, train=TRAIN, test=TEST)
    with pytest.raises(DataError, match=r"real_train\.txt: No such file or directory; put DomainNet's official list"):
        opened("domainnet:real")
    (data_root / "domainnet/sketch/ant/c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png: No such file or directory; restore the file"):
        opened("domainnet:sketch")
