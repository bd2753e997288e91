"""Teachers that a config names by recipe: trained once, and never taken for others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitutor_core.config import fingerprinted
from vitutor_core.errors import CheckpointError
from vitutor_core.jobs import teacher as teacher_command
from vitutor_core.jobs.teacher import with_teachers
from vitutor_core.models.weights import read_card
from vitutor_core.recipe import resolve
from vitutor_core.schema import RunConfig, TeacherConfig


class Student(RunConfig):
    teacher: TeacherConfig | None = fingerprinted(None, help="a teacher")


def student(toy_paper, *settings):
    return resolve(Student, toy_paper / "toypaper" / "recipes" / "digits.yaml", settings=settings)


def test_missing_teachers_are_trained_once_on_all_data(toy_paper, tmp_path, monkeypatch):
    config, short = student(toy_paper, "teacher={recipe: cnn}"), ("train.epochs=1",)
    found = with_teachers(config, "digits", tmp_path, settings=short)
    assert found == config.changed([f"teacher.weights={tmp_path / 'cnn'}"])
    result = json.loads((tmp_path / "cnn" / "metrics.json").read_text())
    assert (result["paper"], result["row"], result["train_images"]) == ("supervised", "cnn", 901)
    assert result["config"]["data"]["image_size"] == config.data.image_size
    assert read_card(tmp_path / "cnn" / "student.safetensors").metrics["top1"] == result["metrics"]["top1"]
    monkeypatch.setattr(teacher_command, "train_teacher", lambda *_, **__: pytest.fail("trained again"))
    assert with_teachers(config, "digits", tmp_path, settings=short) == found
    alone = student(toy_paper)
    assert with_teachers(alone, "digits", tmp_path) == alone


def another_image(images, _):
    Image.new("RGB", (31, 29), (9, 9, 9)).save(images / "train" / "blue" / "0.jpg")


def begun(_, folder):
    """As a teacher that was interrupted: with a checkpoint, and without a result."""
    (folder / "cnn" / "metrics.json").unlink()


CHANGES = {
    "other images": (("data.image_size=16",), another_image, "data: '"),
    "another image size": (("data.image_size=24",), lambda *_: None, "data.image_size: 16 -> 24"),
    "another recipe": (("optim.lr=0.02",), lambda *_: None, "optim.lr: "),
    "begun with another recipe": (("optim.lr=0.02",), begun, "optim.lr: "),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_teacher_of_something_else_is_not_taken(toy_paper, tmp_path, images, change, capsys):
    settings, act, said = CHANGES[change]
    short = ("train.epochs=1", "train.batch_size=4")
    folder, source = tmp_path / "teachers", f"data.source=folder:{images}"
    config = student(toy_paper, "teacher={recipe: cnn}", source)
    first = with_teachers(config, "digits", folder, settings=short).teacher.weights
    before = {path.name: path.read_bytes() for path in (folder / "cnn").glob("*.*")}
    act(images, folder)
    for _ in range(2):  # trained, then found
        found = with_teachers(config, "digits", folder, settings=(*short, *settings)).teacher.weights
        assert found != first == str(folder / "cnn")
        assert read_card(Path(found) / "student.safetensors").method == "supervised"
        assert f"teacher cnn: {folder / 'cnn'} is another ({said}" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 2
    assert before.items() >= {path.name: path.read_bytes() for path in (folder / "cnn").glob("*.*")}.items()


@pytest.mark.parametrize("text", ["", "{}", "{"])
@pytest.mark.parametrize("name", ["metrics.json", "run.json"])
def test_a_teacher_without_a_readable_record_is_not_taken(toy_paper, tmp_path, name, text):
    (tmp_path / "cnn").mkdir()
    (tmp_path / "cnn" / name).write_text(text)
    with pytest.raises(CheckpointError, match=rf"{name}: .*delete"):
        with_teachers(student(toy_paper, "teacher={recipe: cnn}"), "digits", tmp_path)
