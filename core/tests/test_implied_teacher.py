"""A teacher that a config names by recipe: it sees the student's data as the student does, and its errors are its."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.tests.train_samples import TINY
from vitutor_core.config import fingerprinted
from vitutor_core.errors import CheckpointError, ConfigError, DataError, InterruptedRun, ResourceError, named
from vitutor_core.jobs import teacher
from vitutor_core.paper import installed_papers, teacher_recipe
from vitutor_core.recipe import read_recipe, recipe_path, resolve, scales_of
from vitutor_core.schema import RunConfig, TeacherConfig


class Config(RunConfig):
    teacher: TeacherConfig = fingerprinted(TeacherConfig(recipe="cnn"), help="a teacher")


def config(*settings: str) -> Config:
    return Config.from_mapping(TINY, where="test").changed(settings)


@pytest.fixture
def images(tmp_path: Path) -> str:
    for split, count in (("train", 6), ("val", 2)):
        for label in ("blue", "green", "red"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                color = (number * 20, len(label) * 20, 99)
                Image.new("RGB", (20, 20), color).save(folder / f"{number}.png")
    return f"data.source=folder:{tmp_path / 'images'}"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Return the configs of what would be trained."""
    configs: list[RunConfig] = []

    def note(scale: str, name: str, out: Path, *, settings: tuple[str, ...]) -> None:
        configs.append(resolve(RunConfig, teacher_recipe(scale, name), row=name, settings=settings))

    monkeypatch.setattr(teacher, "train_teacher", note)
    return configs


@pytest.mark.parametrize(
    "changed",
    [
        'data.class_list=["red", "blue"]',
        "data.image_size=24",
        "data.loader=streamed",
        "data.interpolation=bicubic",
        "data.crop_ratio=0.875",
        "data.balance=sampling",
        "data.holdout=0.4",
        "runtime.workers=0",
    ],
)
def test_it_sees_what_its_student_sees(changed: str, images: str, trained: list[RunConfig], tmp_path: Path) -> None:
    student = config(images, "data.per_class=null", changed)
    teacher.with_teachers(student, "digits", tmp_path / "teachers")
    section, _, name = changed.partition("=")[0].partition(".")
    assert getattr(getattr(trained[0], section), name) == getattr(getattr(student, section), name)
    assert trained[0].data.source == student.data.source


@pytest.mark.parametrize(("batch", "settings", "fitting"), [(4, (), 4), (500, (), 18), (8, ("data.holdout=0.5",), 8)])
def test_its_batch_fits_the_images(
    batch: int,
    settings: tuple[str, ...],
    fitting: int,
    images: str,
    trained: list[RunConfig],
    tmp_path: Path,
    capsys: Any,
) -> None:
    student = config(images, "data.per_class=null", f"train.batch_size={batch}", *settings)
    teacher.with_teachers(student, "digits", tmp_path / "teachers")
    assert trained[0].train.batch_size == fitting
    assert f"teacher cnn: train.batch_size={fitting} instead of 64, of " in capsys.readouterr().err


def test_a_batch_that_fits_stays(trained: list[RunConfig], tmp_path: Path) -> None:
    teacher.with_teachers(config(), "digits", tmp_path)
    assert trained[0].train.batch_size == 64


@pytest.mark.parametrize(
    ("kind", "says_how"), [(ConfigError, True), (ResourceError, True), (DataError, False), (CheckpointError, False)]
)
def test_its_errors_say_whose_they_are_and_what_sets_it(
    kind: type[Exception], says_how: bool, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("optim.name: no such thing")

    monkeypatch.setattr(teacher, "train_teacher", fail)
    with pytest.raises(kind, match=r"^teacher cnn: optim\.name: no such thing") as caught:
        teacher.with_teachers(config(images), "digits", tmp_path / "teachers")
    how = (
        f"run `vitutor teacher cnn --scale digits --set {images} --set FIELD=VALUE --out DIR`, and give --set teacher."
    )
    assert (how in str(caught.value)) == says_how


def test_a_name_before_an_error_keeps_what_it_is() -> None:
    with pytest.raises(InterruptedRun, match=r"^row a: stopped$") as caught, named("row a", "change it"):
        raise InterruptedRun("stopped", 15)
    assert caught.value.exit_code == 143


def test_rows_of_recipes_want_the_teachers_that_the_graph_trains() -> None:
    """Else each row would train its own, beside that of the stage."""
    for package, paper in installed_papers().items():
        for scale in scales_of(package):
            for row in read_recipe(recipe_path(package, scale)).rows:
                found = paper.resolve(scale, None, row, ())
                for _, of in teacher.teachers_of(found):
                    if of.recipe is not None:
                        alone = resolve(RunConfig, teacher_recipe(scale, of.recipe), row=of.recipe)
                        assert teacher.teacher_config(found, scale, of.recipe).data == alone.data, (package, scale, row)
