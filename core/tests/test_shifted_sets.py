"""Accuracy on ImageNet-A, -R, -C, -V2 and -Real: an image's grey says which class the model answers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from conformance.records import made_up_card, write_record
from vitutor_core.errors import CheckpointError, ConfigError, DataError
from vitutor_core.evaluate.shifts import measure_sets
from vitutor_core.jobs.robustness import measure_row
from vitutor_core.models.weights import save_model
from vitutor_core.paper import Paper
from vitutor_core.recipe import SHIFTED_SETS, read_recipe

pytestmark = pytest.mark.filterwarnings("ignore:folder.imagenet. no evaluation images")
CLASSES = tuple(f"n{number:08}" for number in range(12))
PAPER = Paper("toypaper", config="vitutor_core.schema:RunConfig", method="vitutor_core.train.supervised:Supervised")


def heads_of(_model, _record):
    """The first answer is the class that the grey stands for, the second, which `next_` gives, the one after it."""

    def heads(images):
        answers = ((images.mean((1, 2, 3)) * 0.25 + 0.5) * 255 / 20).round().long()
        first, second = (torch.nn.functional.one_hot((answers + by) % 12, 12).float() for by in (0, 1))
        return {"": 2 * first + second, "next_": second}

    return heads


def write(folder, answered, number=0, name="image"):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.full((16, 16, 3), 20 * answered, dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}{number:08}.png")


def make_run(folder, classes=CLASSES):
    folder.mkdir(parents=True)
    card = made_up_card(class_names=classes)
    save_model(folder / "student.safetensors", timm.create_model("resnet8_tiny", num_classes=len(classes)), card)
    data = {"source": "folder:imagenet", "image_size": 16}
    write_record(folder, paper="toypaper", config={"data": data})
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Below it, validation images 1 to 4, which the model takes for classes 0, 3, 5 and 7."""
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(tmp_path / "data"))
    for name in CLASSES:
        write(tmp_path / "data" / "imagenet" / "train" / name, 0)
    # Their numbers are not in the order of their folders.
    for number, answered, label in ((1, 0, 9), (2, 3, 3), (3, 5, 2), (4, 7, 0)):
        write(tmp_path / "data" / "imagenet" / "val" / CLASSES[label], answered, number, "ILSVRC2012_val_")
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "row" / "seed-0")


def measure(run, *names):
    return measure_sets(run, "toypaper", names, torch.device("cpu"), heads_of)


def write_real(root, labels):
    (root / "imagenet-real").mkdir(exist_ok=True)
    (root / "imagenet-real" / "real.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))


def test_a_model_chooses_among_the_classes_of_a_and_among_all_of_v2(root, run):
    for name in ("a", "v2"):
        write(root / f"imagenet-{name}" / CLASSES[5], 4)  # its second answer
        write(root / f"imagenet-{name}" / CLASSES[10], 10)
    assert measure(run, "a", "v2") == {"a": 100.0, "next_a": 50.0, "v2": 50.0, "next_v2": 50.0}


def test_v2_as_it_is_distributed_goes_by_position(root, run):
    for position in range(12):  # of which 10 and 11 come before 2 in the order of names
        write(root / "imagenet-v2" / str(position), position if position != 3 else 4)
    assert measure(run, "v2")["v2"] == pytest.approx(100 * 11 / 12)


def test_real_takes_any_of_the_labels_and_leaves_out_images_without_any(root, run):
    write_real(root, [[1, 0], [11], [], [2, 4, 7]])  # right, wrong, not counted, right
    assert measure(run, "real") == {"real": pytest.approx(100 * 2 / 3), "next_real": pytest.approx(100 / 3)}


def test_the_error_on_c_is_a_mean_over_its_parts(root, run):
    for corruption, answered in (("fog", 1), ("snow", 2)):
        write(root / "imagenet-c" / corruption / "1" / CLASSES[1], 1)
        write(root / "imagenet-c" / corruption / "1" / CLASSES[2], answered)
    assert measure(run, "c") == {"mce": 25.0, "next_c": 75.0}


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("{", "expected a JSON list"),
        ("[" * 100_000, "expected a JSON list"),
        ([], "expected a JSON list"),
        ([[0], "1"], "expected a JSON list"),
        ([[0], [True]], "expected a JSON list"),
        ([[0], [-1]], "expected a JSON list"),
        ([[0], [11], [1]], "real.json has labels of the images 1 to 3"),
    ],
)
def test_labels_that_cannot_be(root, run, labels, message):
    write_real(root, labels)
    with pytest.raises(DataError, match=message):
        measure(run, "real")


def test_positions_of_other_classes_are_refused(root, run, tmp_path):
    write_real(root, [[0], [3], [5], [999]])
    with pytest.raises(ConfigError, match=r"positions of 1000 classes; the model has 12"):
        measure(run, "real")
    write(root / "imagenet-v2" / "12", 0)
    with pytest.raises(ConfigError, match=r"positions of 13 classes; the model has 12"):
        measure(run, "v2")
    write_real(root, [[0], [3], [5], [11]])
    with pytest.raises(ConfigError, match="the model's classes are not sorted"):
        measure(make_run(tmp_path / "unsorted", CLASSES[::-1]), "real")


def test_images_of_other_names_have_no_labels(root, run):
    write_real(root, [[0], [3], [5], [11]])
    write(root / "imagenet" / "val" / CLASSES[0], 0, 5, "cat")
    with pytest.raises(DataError, match=r"cat00000005\.png: real\.json goes by ImageNet's file names"):
        measure(run, "real")


@pytest.mark.parametrize("name", SHIFTED_SETS)
def test_what_is_not_there_is_named(root, run, name):
    with pytest.raises(DataError, match=f"imagenet-{name}: no such folder .*VITUTOR_DATA_ROOT"):
        measure(run, name)
    (root / f"imagenet-{name}").mkdir()
    with pytest.raises(DataError, match=rf"imagenet-{name}(/real\.json)?: "):
        measure(run, name)
    (root / f"imagenet-{name}" / CLASSES[0] / "deeper").mkdir(parents=True)
    write_real(root, [[], [], [], []]) if name == "real" else None
    with pytest.raises((DataError, ConfigError)):
        measure(run, name)


def test_a_row_without_runs_or_sets_is_refused(root, run, tmp_path):
    with pytest.raises(ConfigError, match="give --sets too"):
        measure_row(PAPER, run.parent, (), tmp_path / "out", "cpu", None)
    with pytest.raises(ConfigError, match="--sets: no set 'b'; there are a, r, c, v2, real"):
        measure_row(PAPER, run.parent, ("b",), tmp_path / "out", "cpu", None)
    with pytest.raises(CheckpointError, match="train one with 'toypaper reproduce'"):
        measure_row(PAPER, tmp_path, ("a",), tmp_path / "out", "cpu", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robustness: [one]", "'robustness' has the keys 'rows' and 'sets'"),
        ("robustness: {rows: [one], sets: [v3]}", "no set 'v3'; there are a, r, c, v2, real"),
        ("robustness: {rows: one, sets: [a]}", "each a list of names"),
    ],
)
def test_recipes_that_ask_for_what_is_not_there(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"base: {{}}\nrows: {{one: {{}}, two: {{}}}}\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_recipe_says_which_rows_are_measured_on_what(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text('base: {}\nrows: {one: {}, two: {}, tee: {}}\nrobustness: {rows: ["t*"], sets: [real, a]}\n')
    assert read_recipe(path).robustness == (("two", "tee"), ("real", "a"))
