"""No image of a folder vanishes, multiplies or changes without a word, and no label does."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.tests.conftest import Called
from core.tests.source_samples import opened, shades
from core.tests.train_samples import TINY
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.config import Config
from vitutor_core.data.check import check_source
from vitutor_core.data.sources.images import file_split
from vitutor_core.data.sources.locate import several
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig, RunConfig
from vitutor_core.train.method import Traits
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised


def save(path: Path, shade: int, kind: str = "PNG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, kind)
    return path


@pytest.fixture
def pets(data_root: Path) -> Path:
    """Four training and two evaluation images, all different."""
    folders = ("train/cat", "train/cat", "train/dog", "train/dog", "val/cat", "val/dog")
    for shade, folder in enumerate(folders):
        save(data_root / "pets" / folder / f"{shade}.png", shade)
    return data_root / "pets"


def checked(source: str = "folder:pets", **fields: object) -> dict[str, object]:
    return check_source(DataConfig(source=source, image_size=8, **fields), progress=lambda *_: None)


# --- files that are read or passed over


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((f"a{suffix}", "JPEG") for suffix in (".jfif", ".JPE", ".jpg_large", "")),
        *((f"a{suffix}", "PPM") for suffix in (".pbm", ".pnm", ".image")),
        ("a.apng", "PNG"),
        ("a.tiff", "TIFF"),
        ("photo 12.08.2019", "WEBP"),
    ],
)
def test_images_are_known_by_suffix_or_header(pets: Path, name: str, kind: str) -> None:
    save(pets / "train" / "cat" / name, 40, kind)
    source = opened("folder:pets")
    assert sorted(source.train.labels) == [0, 0, 0, 1, 1]
    assert 40 in shades(source.train)


def test_a_damaged_image_is_not_passed_over(pets: Path) -> None:
    (pets / "train" / "cat" / "bad.jfif").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"bad\.jfif: cannot read the image"):
        checked()


def test_what_is_passed_over_is_counted_by_suffix(pets: Path) -> None:
    for name in ("cat/a.HEIC", "cat/b.heic", "dog/deep/c.txt", "dog/Makefile", "notes.md", "dog/.DS_Store"):
        (pets / "train" / name).parent.mkdir(exist_ok=True)
        (pets / "train" / name).write_text("x")
    save(pets / "train" / "loose.png", 9)
    (pets / "train" / "eel").symlink_to(pets / "gone")
    with pytest.warns(UserWarning, match=rf"^{pets}/train: files passed over: 2 \.heic, ") as warned:
        manifest = checked()
    text = str(warned[0].message)
    assert manifest["notes"] == [text]
    loose = (f"1 {kind} outside of the classes" for kind in (".md", ".png", "without a suffix"))
    assert {*loose, "2 .heic", "1 .txt", "1 without a suffix"} == set(text.rpartition(": ")[2].split(", "))
    assert manifest["train"]["images"] == 4


def test_a_folder_that_cannot_be_listed_is_refused(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir
    save(pets / "train" / "cat" / "deep" / "6.png", 6)

    def denied(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=r"cat/deep: Permission denied; make the folder readable"):
        opened("folder:pets")


# --- links


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/loop", ".."),
        ("train/dog/loop", ".."),
        ("train/cat/loop", "../.."),
        ("train/cat/deep/loop", "../../../.."),
        ("train/dog/more", "../cat"),
        ("train/cat/more", "../dog"),
        ("train/cat/more", "../dog/deep"),
        ("train/dog/more", "../cat/deep"),
        ("train/eel", "cat"),
        ("train/apes", "dog"),
        ("val/cat/loop", ".."),
    ],
)
def test_links_that_give_an_image_two_labels_are_refused(pets: Path, link: str, target: str) -> None:
    for name in ("cat", "dog"):
        save(pets / "train" / name / "deep" / "6.png", 6)
    (pets / link).symlink_to(target)
    with pytest.raises(DataError, match=r"images would have two labels; remove the link$"):
        opened("folder:pets")


def test_each_real_folder_is_read_once(pets: Path, tmp_path: Path) -> None:
    outside = save(tmp_path / "elsewhere" / "deep" / "6.png", 6).parent.parent
    (outside / "deep" / "back").symlink_to("..")
    for link in ("one", "two", "one_more"):
        (pets / "train" / "cat" / link).symlink_to(outside)
    (pets / "train" / "cat" / "self").symlink_to(".")
    shutil.move(pets / "train" / "dog", tmp_path / "dogs")
    (pets / "train" / "dog").symlink_to(tmp_path / "dogs")
    assert sorted(shades(opened("folder:pets").train)) == [0, 1, 2, 3, 6]
    (pets / "train" / "dog" / "here").symlink_to(outside / "deep")
    with pytest.raises(DataError, match="two labels"):
        opened("folder:pets")


# --- equal images


def _copy(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def _link(source: Path, target: Path) -> None:
    target.symlink_to(source)


def _encode_anew(source: Path, target: Path) -> None:
    with Image.open(source) as image:
        image.convert("RGB").save(target.with_suffix(".bmp"))


@pytest.mark.parametrize("again", [_copy, os.link, _link, _encode_anew])
def test_an_image_in_both_splits_or_of_two_classes_is_named(pets: Path, again: Callable[[Path, Path], None]) -> None:
    again(pets / "train" / "dog" / "3.png", pets / "val" / "dog" / "again.png")
    again(pets / "train" / "dog" / "2.png", pets / "train" / "cat" / "again.png")
    both, two = checked()["notes"]
    assert both.startswith(f"evaluation images that are trained on: {pets}/val/dog/again.")
    assert both.endswith(f" equals {pets}/train/dog/3.png")
    assert two.startswith("equal images of different classes: ")
    assert "cat/again." in two
    assert "dog/2.png" in two
    assert len(checked(holdout=0.5)["notes"]) >= 1


def test_different_images_are_no_doubles(pets: Path) -> None:
    Image.new("L", (4, 16), 0).save(pets / "val" / "cat" / "other_shape.png")
    assert checked()["notes"] == []


# --- images that change


def config(source: str, **data: object) -> RunConfig:
    values = TINY | {"data": {"source": source, "image_size": 16, **data}, "train": {"epochs": 1, "batch_size": 2}}
    return RunConfig.from_mapping(values, where="test")


def trained(out: Path, config: Config, build: object = Supervised.build) -> dict[str, object]:
    return train(config, build, label=RunLabel("supervised", "test", "digits", "test"), out=out)


@pytest.mark.parametrize("changed", ["train/cat/1.png", "val/dog/5.png"])
@pytest.mark.parametrize("fields", [{}, {"holdout": 0.5}, {"class_list": ("cat", "dog")}])
def test_an_image_of_the_same_size_in_bytes_is_noticed(
    pets: Path, tmp_path: Path, changed: str, fields: dict[str, object]
) -> None:
    for path in pets.rglob("*.png"):
        shade = int(path.stem)
        Image.new("L", (8, 8), shade).save(path.with_suffix(".bmp"))
        path.unlink()
    image = (pets / changed).with_suffix(".bmp")
    run = config("folder:pets", **fields)
    trained(tmp_path / "run", run)
    trained(tmp_path / "run", run)
    before, size = checked(), image.stat().st_size
    Image.new("L", (8, 8), 99).save(image)
    assert image.stat().st_size == size
    part, after = changed.partition("/")[0].replace("val", "evaluation"), checked()
    assert after[part]["pixels"] != before[part]["pixels"]
    if part == "evaluation" and "holdout" in fields:
        trained(tmp_path / "run", run)  # it is not read
        return
    with pytest.raises(ConfigError, match=r"holds another run \(image files: "):
        trained(tmp_path / "run", run)


# --- broken and missing images


@pytest.mark.parametrize("count", [1, 4, 25])
def test_all_broken_images_are_listed(pets: Path, count: int) -> None:
    for number in range(count):
        split = ("train", "val")[number % 2]
        (pets / split / "dog" / f"broken{number:02}.png").write_bytes(b"junk")
    with pytest.raises(DataError) as error:
        checked()
    text, notes = str(error.value), getattr(error.value, "__notes__", [])
    if count == 1:
        assert notes == []
        assert text.startswith(f"{pets}/train/dog/broken00.png: cannot read the image: ")
    else:
        assert text == f"{count} images cannot be read; for each: repair or remove it"
        assert [note.count("dog/broken") for note in notes] == [1] * min(count, 20) + [0] * (count == 25)
        assert (notes[-1] == "and 5 more") == (count == 25)
    assert "\n" not in "".join((text, *notes))


def test_all_missing_files_are_listed(pets: Path) -> None:
    files = ["train/cat/0.png", "gone/1.png", "gone/2.png"]
    with pytest.raises(DataError, match="2 images cannot be read; for each: restore the file") as error:
        file_split(pets, files, np.zeros(3, dtype=np.int64))
    assert error.value.__notes__ == [f"{pets}/gone/{number}.png: No such file or directory" for number in (1, 2)]


def test_different_advice_stays_with_each(pets: Path) -> None:
    problems = ["a: torn; repair it", "b: gone; restore it"]
    assert several(problems).__notes__ == problems
    assert str(several(problems)) == "2 images cannot be read"
    assert str(several(["a: torn", "b: torn"])) == "2 images cannot be read"


def test_the_command_gives_each_a_line(pets: Path, call: Called) -> None:
    for name in ("b\nroken.png", "c.png"):
        (pets / "train" / "dog" / name).write_bytes(b"junk")
    code, _, err = call(vitutor, "data", "--source", f"folder:{pets}")
    lines = [line.partition(": ") for line in err.splitlines()]
    assert (code, [start for start, _, _ in lines]) == (3, ["error"] * 3)
    places = [rest.partition(": cannot read")[0] for _, _, rest in lines]
    assert places == [f"{pets}/train/dog/b roken.png", f"{pets}/train/dog/c.png", lines[-1][2]]
    assert lines[-1][2] == "2 images cannot be read; for each: repair or remove it"


# --- a single class


class _Describes(Supervised):
    traits = Traits(classifies=False)


@pytest.mark.parametrize("fields", [{}, {"class_list": ("cat",)}])
def test_a_classifier_needs_two_classes(pets: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    if not fields:
        shutil.rmtree(pets / "train" / "dog")
        shutil.rmtree(pets / "val" / "dog")
    run = config("folder:pets", **fields)
    with pytest.raises(DataError, match="its one class is cat; to classify takes two"):
        trained(tmp_path / "run", run)
    assert not (tmp_path / "run" / "run.json").exists()
    trained(tmp_path / "other", run, _Describes.build)
