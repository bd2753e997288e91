"""Text that a user types for a field of type text is taken as it is; other values are read as YAML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from vitutor_core.cli.graph import data
from vitutor_core.config import fingerprinted, setting
from vitutor_core.errors import ConfigError
from vitutor_core.graph.params import Params, change_params
from vitutor_core.schema import RunConfig, TeacherConfig

MARKS = (" #2", ": c", "[1]", "]", "{x: y}", "}", ",", " & ", "*", "?", "|", " > ", "%", "'", '"')
STARTS = ("#", ": ", "[", "]", "{", "}", ",", "&", "*", "? ", "| ", "> ", "%", "!", "@", "`", "- ", "'", '"')
BLANKS = (" x", "x ", "\tx", "x\n", "", " ")
VALUES = ("~", "yes", "1", "1e3", "0x10", "2020-01-01", "a=b", '"x"', "'x'", "Null", "<<", "€", "[x")
ODD = [*(f"in/a{mark}b" for mark in MARKS), *(f"{mark}x" for mark in STARTS), *BLANKS, *VALUES]


class Taught(RunConfig):
    teacher: TeacherConfig | None = fingerprinted(None, help="one")
    teachers: dict[str, TeacherConfig] = fingerprinted({}, help="several")


def config() -> Taught:
    values = {
        "data": {"image_size": 8},
        "student": {"name": "a", "kwargs": {}},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 2},
        "teacher": {"recipe": "cnn"},
        "teachers": {"cnn": {"recipe": "cnn"}},
    }
    return Taught.from_mapping(values, where="test")


def value(path: str, config: Taught) -> object:
    found: object = config
    for part in path.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize(
    "path",
    [
        "data.source",
        "data.train_from",
        "student.name",
        "student.weights",
        "teacher.weights",
        "teachers.cnn.weights",
        "runtime.device",
        "augment.rand_augment",
    ],
)
def test_fields_of_type_text_take_the_text_as_it_is(path: str, text: str) -> None:
    assert value(path, config().changed([f"{path}={text}"])) == text
    assert value(path, config().changed([setting(path, text)])) == text


@pytest.mark.parametrize("text", ODD)
def test_where_a_list_may_be_only_a_list_is_one(text: str) -> None:
    assert config().changed([f"data.class_list={text}"]).data.class_list == text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("data.class_list=[a, 'b c', \"d\"]", ("a", "b c", "d")),
        ("data.class_list=null", None),
        ("data.train_from=null", None),
        ("data.source=null", "null"),
        ("teacher=null", None),
        ("student.kwargs.depth=12", 12),
        ("student.kwargs.depth='12'", "12"),
        ("student.kwargs.scale=1e-3", 1e-3),
        ("student.kwargs.flag=false", False),
        ("student.kwargs.none=null", None),
        ("student.kwargs.list=[1, a]", (1, "a")),
        *(
            (f"student.kwargs.act={text}", text)
            for text in ("gelu", "a: b", "a #b", "{a: b}", "@x", "2020-01-01", "a, b")
        ),
        ("train.epochs=0x10", 16),
        ("augment.crop_scale=[0.5, 1]", (0.5, 1.0)),
        ("augment.crop_scale=0.5, 1", (0.5, 1.0)),
        ("runtime.track=tensorboard,wandb", ("tensorboard", "wandb")),
        ("runtime.track=wandb", ("wandb",)),
        ("data.loader=streamed", "streamed"),
        ('data={"source": "folder:a #b", "image_size": 16}', "folder:a #b"),
    ],
)
def test_other_values_are_yaml(given: str, expected: object) -> None:
    path = given.partition("=")[0]
    found = value(path, config().changed([given]))
    assert (found.source if path == "data" else found) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data.class_list=[1, 2]", "1 is not text; quote it"),
        ("data.class_list=[true]", "true is not text; quote it"),
        ("data.loader= streamed", "data.loader"),
        ("train.epochs=1 2", "train.epochs"),
        ("data.image_size={", "not valid YAML"),
    ],
)
def test_mistakes_are_one_line(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config().changed([given])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["set #2", "a: b", "[x]", "{x}", "a, b", "*x", " x ", "100 % & more?", "'x'", "~"])
@pytest.mark.parametrize("by", ["--source", "--set"])
def test_the_command_reads_the_folder_that_was_named(tmp_path: Path, name: str, by: str) -> None:
    for number, folder in enumerate((name, name.partition(" #")[0] + "-")):  # the second was read before
        for label in range(2):
            for split in ("train", "val"):
                path = tmp_path / folder / split / str(label) / "0.png"
                path.parent.mkdir(parents=True)
                Image.new("L", (4, 4), 100 * number + 10 * label + (split == "val")).save(path)
    given = f"folder:{tmp_path / name}"
    out = tmp_path / "manifest.json"
    given = [by, given] if by == "--source" else [by, f"source={given}"]
    result = CliRunner().invoke(data, [*given, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(out.read_text())["name"] == f"folder:{name}"


@pytest.mark.parametrize("text", ["dearkd@vit", "1e3", "~", "*x", "yes"])
def test_fields_of_params_take_text_too(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("scale: digits\n")
    change_params(path, (f"rows={text},other", f"preset={text}", "seeds=0 1"))
    found = Params.read(path)
    assert (found.rows, found.preset, found.seeds) == ((text, "other"), text, (0, 1))


def test_a_value_that_another_setting_changed_is_read_as_it_was_typed():
    first = "teachers={cnn: {recipe: cnn}}"
    assert config().changed([first, "teachers.cnn.recipe=inn"]).teachers["cnn"].recipe == "inn"
    assert config().changed([first]).teachers["cnn"].recipe == "cnn"
