"""The names of sources, digits and image folders; and what is said when they are not as they should be."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitutor_core.data.sources.images import file_split
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def opened(source: str) -> Source:
    return open_source(DataConfig(source=source, image_size=8))


def colors(split: Split) -> list[tuple[int, ...]]:
    return [split.read(index).getpixel((0, 0)) for index in range(len(split.labels))]


# --- names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("digit", "'digits'"),
        ("cifar1000", "'cifar100'"),
        ("folder", "'folder:PATH'"),
        ("parquet:", "'parquet:PATH'"),
        ("cifar10:x", "'cifar10'"),
        ("torchvison:mnist", "'torchvision:NAME'"),
    ],
)
def test_unknown_sources_get_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"no source '{name}'; did you mean {hint}"):
        opened(name)


def test_a_folder_is_no_source_without_its_prefix(data_root: Path) -> None:
    (data_root / "digit").mkdir()
    with pytest.raises(ConfigError, match="no source 'digit'; did you mean 'folder:digit'"):
        opened("digit")


def test_all_sources_are_named(data_root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        opened("fodler:clean")
    assert "no source 'fodler:clean'; did you mean 'folder:PATH'?; valid: digits, " in str(error.value)
    assert str(error.value).endswith(", timm:NAME; for detection: scenes, coco:FOLDER")


@pytest.mark.parametrize("name", ["", "x" * 5000, "~nobody-of-this-name/x"], ids=["nothing", "too long", "no home"])
def test_what_cannot_be_a_folder_gets_no_such_hint(data_root: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no source '{name}'; valid: digits"):
        opened(name)


def test_a_home_that_is_not_there_is_said(data_root: Path) -> None:
    with pytest.raises(DataError, match=r"^~nobody-of-this-name/x: no home folder '~nobody-of-this-name'$"):
        opened("folder:~nobody-of-this-name/x")


# --- digits


def test_digits_are_the_bundled_images() -> None:
    source = opened("digits")
    bundle = load_digits()
    read = [
        (np.asarray(split.read(index)).tobytes(), int(split.labels[index]))
        for split in (source.train, source.evaluation)
        for index in range(len(split.labels))
    ]
    expected = []
    for image, label in zip(bundle.images, bundle.target, strict=True):
        grey = [round(value * 255 / 16) for value in image.reshape(-1)]
        expected.append((bytes(np.repeat(grey, 3).astype(np.uint8)), int(label)))
    assert sorted(read) == sorted(expected)
    assert source.class_names == tuple("0123456789")


def test_digits_hold_out_half_of_each_class_the_same_on_every_machine() -> None:
    source = opened("digits")
    total = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(source.evaluation.labels), total // 2)
    np.testing.assert_array_equal(np.bincount(source.train.labels), total - total // 2)
    # pinned: another split would change every published number
    assert source.train.content_hash == "700489b38833eece397422ca21f108298456a0205bf51dd78bbd3a532f7335c9"
    assert source.evaluation.content_hash == "d4cf5e185ff8881156c7334f57c21fb8da0dd5ea8124a191798b7d142b769a4e"


def test_digits_statistics_are_those_of_the_training_half() -> None:
    source = opened("digits")
    pixels = np.stack([np.asarray(source.train.read(index)) for index in range(len(source.train.labels))]) / 255
    np.testing.assert_allclose(source.mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(source.std, pixels.std((0, 1, 2)), atol=5e-5)


# --- image folders


def add_image(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(path)


@pytest.fixture
def pets(data_root: Path) -> Path:
    for split, shade in (("train", 0), ("val", 100)):
        for label, name in enumerate(("cat", "dog", "eel")):
            add_image(data_root / "pets" / split / name / "b.png", shade + 10 * label)
            add_image(data_root / "pets" / split / name / "deep" / "a.JPG.png", shade + 10 * label + 1)
    return data_root / "pets"


def test_a_folder_is_read_in_the_order_of_names(pets: Path) -> None:
    add_image(pets / "train" / "dog" / ".hidden.png", 5)
    add_image(pets / "train" / "dog" / ".cache" / "x.png", 5)
    add_image(pets / "train" / ".git" / "x.png", 5)
    (pets / "train" / "dog" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match="passed over"):
        source = opened("folder:pets")
    assert source.name == "folder:pets"
    assert source.class_names == ("cat", "dog", "eel")
    assert source.train.labels.tolist() == source.evaluation.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert [shade for shade, _, _ in colors(source.train)] == [0, 1, 10, 11, 20, 21]
    assert [shade for shade, _, _ in colors(source.evaluation)] == [100, 101, 110, 111, 120, 121]
    assert source.train.where(3) == str(pets / "train" / "dog" / "deep" / "a.JPG.png")


def test_a_path_is_resolved_under_the_root_first_then_in_the_current_folder(pets: Path, tmp_path: Path) -> None:
    under_root = opened("folder:pets")
    shutil.copytree(pets, tmp_path / "pets")
    add_image(tmp_path / "pets" / "train" / "cat" / "more.png", 1)
    assert len(opened("folder:pets").train.labels) == 6
    assert len(opened(f"folder:{tmp_path / 'pets'}").train.labels) == 7
    shutil.rmtree(pets)
    assert len(opened("folder:pets").train.labels) == 7
    assert under_root.train.where(0).startswith(str(pets))


def test_the_evaluation_folder_may_be_called_validation_or_test(pets: Path) -> None:
    (pets / "val").rename(pets / "test")
    assert colors(opened("folder:pets").evaluation)[0] == (100, 100, 100)
    add_image(pets / "validation" / "cat" / "only.png", 7)
    with (
        pytest.warns(UserWarning, match="no evaluation images of dog, eel"),
        pytest.warns(UserWarning, match="evaluated on 'validation'; there is 'test' too"),
    ):
        assert colors(opened("folder:pets").evaluation) == [(7, 7, 7)]


@pytest.mark.parametrize("leave_folder", [False, True])
def test_a_class_missing_in_val_is_a_warning_and_shifts_no_label(pets: Path, leave_folder: bool) -> None:
    shutil.rmtree(pets / "val" / "cat")
    if leave_folder:
        (pets / "val" / "cat").mkdir()
    with pytest.warns(UserWarning, match="folder:pets: no evaluation images of cat"):
        source = opened("folder:pets")
    assert source.evaluation.labels.tolist() == [1, 1, 2, 2]
    assert source.class_names == ("cat", "dog", "eel")


def test_a_class_of_val_that_train_lacks_is_refused(pets: Path) -> None:
    (pets / "val" / "dog").rename(pets / "val" / "Dog")
    with pytest.raises(DataError, match=r"val: classes that train does not have: Dog; did you mean 'dog'\?"):
        opened("folder:pets")


def test_an_evaluation_split_without_images_is_refused(pets: Path) -> None:
    for image in (pets / "val").rglob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="folder:pets, evaluation split: it has no images"):
        opened("folder:pets")


def test_empty_training_classes_are_listed(pets: Path) -> None:
    for name in ("cat", "eel"):
        shutil.rmtree(pets / "train" / name)
        (pets / "train" / name).mkdir()
        (pets / "train" / name / ".DS_Store").write_text("")
    with pytest.raises(DataError, match=r"folder:pets: no training images of cat, eel; add images"):
        opened("folder:pets")


def test_classes_that_differ_only_in_case_are_refused(pets: Path) -> None:
    add_image(pets / "train" / "Cat" / "a.png", 1)
    with pytest.raises(DataError, match="classes 'Cat' and 'cat' differ only in case"):
        opened("folder:pets")


def test_wrong_folders_are_described(pets: Path, data_root: Path) -> None:
    (data_root / "empty").mkdir()
    (data_root / "file").write_text("")
    (data_root / "hollow" / "train").mkdir(parents=True)
    (data_root / "hollow" / "val").mkdir()
    for name in ("train", "val"):
        shutil.copytree(pets, data_root / "parent" / name)
    for path, message in {
        "nowhere": r"nowhere: no such folder \(.*holds root\); it should hold train/<class>",
        "file": r"root/file: this is a file; name the folder that holds train/<class>",
        "empty": r"root/empty: expected train/<class>.*; the folder holds nothing",
        "pets/train": rf"the folder holds cat, dog, eel; did you mean {pets}\?",
        "hollow": r"hollow/train: no class folders; it holds nothing",
        "parent": r"parent/train: its classes would be train, val; name the folder that holds train/<class>",
        ".": r"the folder holds empty, file, hollow, parent, pets",
    }.items():
        with pytest.raises(DataError, match=message):
            opened(f"folder:{path}")


def test_the_hash_of_a_folder_follows_its_files(pets: Path, tmp_path: Path) -> None:
    first = opened("folder:pets").train.content_hash
    shutil.copytree(pets, tmp_path / "copy")
    assert opened("folder:copy").train.content_hash == first
    (tmp_path / "copy/train/cat/b.png").rename(tmp_path / "copy/train/cat/c.png")
    renamed = opened("folder:copy").train.content_hash
    (tmp_path / "copy/train/cat/c.png").rename(tmp_path / "copy/train/dog/c.png")
    moved = opened("folder:copy").train.content_hash
    with (tmp_path / "copy/train/dog/c.png").open("ab") as file:
        file.write(b"\0")
    grown = opened("folder:copy").train.content_hash
    assert len({first, renamed, moved, grown}) == 4


def test_the_hash_follows_order_and_labels(pets: Path) -> None:
    files, labels = ["train/cat/b.png", "train/dog/b.png"], np.array([0, 1], dtype=np.int64)
    hashes = {
        file_split(pets, files, labels).content_hash,
        file_split(pets, files, labels[::-1]).content_hash,
        file_split(pets, files[::-1], labels[::-1]).content_hash,
    }
    assert len(hashes) == 3
    with pytest.raises(DataError, match="train/gone: No such file or directory; restore the file"):
        file_split(pets, ["train/gone"], labels[:1])


def test_splits_travel_to_spawned_workers(pets: Path) -> None:
    for name in ("digits", "folder:pets"):
        split = opened(name).train
        copy = pickle.loads(pickle.dumps(split))  # noqa: S301 - our own object
        assert copy.where(3) == split.where(3)
        assert copy.read(3).tobytes() == split.read(3).tobytes()
