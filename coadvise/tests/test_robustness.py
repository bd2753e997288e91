"""Every head of a student on folders of shifted images."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from coadvise.cli import PAPER
from conformance.records import made_up_card, write_record
from vitutor_core.cli.paper import paper_group
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.jobs.robustness import measure_row, measure_student
from vitutor_core.models.weights import save_model

CLASSES = ("a", "b", "c", "d")
KWARGS = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "img_size": 16}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("cit_tiny_patch16_224", num_classes=4, **KWARGS).eval()


@pytest.fixture
def run(model, tmp_path):
    folder = tmp_path / "row" / "seed-3"
    folder.mkdir(parents=True)
    card = made_up_card(name="cit_tiny_patch16_224", kwargs=KWARGS, class_names=CLASSES)
    save_model(folder / "student.safetensors", model, card)
    data = {"source": "digits", "image_size": 16}
    teacher = {"name": "t", "sha256": "0", "top1": None}
    write_record(folder, paper="coadvise", teachers={"cnn": teacher, "inn": teacher}, config={"data": data})
    return folder


def pixels(name, number):
    return np.random.default_rng([ord(name), number]).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def write(folder, classes):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(pixels(name, number)).save(folder / name / f"{number}.png")


@pytest.fixture
def shifted(tmp_path, monkeypatch):
    root = tmp_path / "data"
    write(root / "imagenet-a", "bd")
    write(root / "imagenet-r", "abc")
    for corruption in ("fog", "snow"):
        write(root / "imagenet-c" / corruption / "1", CLASSES)
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(root))
    return root


def accuracy(model, head, classes):
    """The definition, an image at a time."""
    right = []
    for name in classes:
        for number in range(3):
            image = torch.from_numpy(pixels(name, number)).permute(2, 0, 1)[None] / 255
            tokens = model.forward_features((image - 0.5) / 0.25)
            logits = (*model.token_logits(tokens), model.forward_head(tokens))[head][0]
            chosen = [logits[CLASSES.index(other)].item() for other in classes]
            right.append(classes[int(np.argmax(chosen))] == name)
    return 100 * float(np.mean(right))


def test_each_head_chooses_among_the_classes_of_a_folder(model, run, shifted):
    found = measure_student(PAPER, run, ("a", "r", "c"), "cpu")
    for index, head in ((0, "class_"), (1, "cnn_"), (2, "inn_"), (3, "")):
        assert found[f"{head}a"] == pytest.approx(accuracy(model, index, "bd"))
        assert found[f"{head}r"] == pytest.approx(accuracy(model, index, "abc"))
        error = 100 - accuracy(model, index, "abcd")
        assert found[f"{head}c" if head else "mce"] == pytest.approx(error)


def test_a_row_is_written_per_seed_or_left_out_by_its_plan(run, shifted, tmp_path):
    measure_row(PAPER, run.parent, ("a", "r", "c"), tmp_path / "out", "cpu", None)
    assert json.loads((tmp_path / "out" / "seed-3.json").read_text())["metrics"].keys() >= {"a", "r", "mce", "inn_c"}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"run": True, "sets": ["r"]}))
    measure_row(PAPER, run.parent, (), tmp_path / "planned", "cpu", plan)
    heads = {"r", "class_r", "cnn_r", "inn_r"}
    assert json.loads((tmp_path / "planned" / "seed-3.json").read_text())["metrics"].keys() == heads
    plan.write_text(json.dumps({"run": False, "why": "no row needs it"}))
    measure_row(PAPER, run.parent, (), tmp_path / "off", "cpu", plan)
    assert [path.name for path in (tmp_path / "off").iterdir()] == ["not-run.txt"]


def test_the_command_measures_one_run_on_sets_or_on_a_folder(run, shifted):
    def command(*options):
        return CliRunner().invoke(paper_group(PAPER), ["robustness", str(run), "--device", "cpu", *options])

    found = json.loads(command("--sets", "r,a").output)
    assert list(found)[:4] == ["r", "class_r", "cnn_r", "inn_r"]
    assert json.loads(command("--images", str(shifted / "imagenet-r")).output)["top1"] == pytest.approx(found["r"])
    refused = command("--images", str(shifted / "imagenet-r"), "--sets", "r")
    assert "--images: give it without --sets and --out" in str(refused.exception)


def test_unknown_classes_and_missing_folders_are_named(run, shifted):
    write(shifted / "imagenet-r", "x")
    with pytest.raises(ConfigError, match="the model does not know x"):
        measure_student(PAPER, run, ("r",), "cpu")
    (shifted / "imagenet-a").rename(shifted / "elsewhere")
    with pytest.raises(DataError, match="imagenet-a: no such folder"):
        measure_student(PAPER, run, ("a", "r"), "cpu")
