"""The recipes with a foundation model as the teacher, at its real architecture but smaller, and with random weights."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from core.tests.photo_samples import write_photos
from vitutor_core.api import train
from vitutor_core.config import setting
from vitutor_core.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "foundation"
SHORT = ("train.epochs=2", "train.batch_size=8", "data.image_size=64", "runtime.workers=0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"), train=4, val=2)


@pytest.fixture
def given(tmp_path, photos):
    """Settings that put a smaller DINOv2 of random weights in place of the one that is fetched."""

    def settings(image_size, name="vit_small_patch14_dinov2.lvd142m"):
        small = {"embed_dim": 24, "depth": 4, "num_heads": 2}
        model = timm.create_model(name, num_classes=0, img_size=image_size, **small)
        save_file(model.state_dict(), tmp_path / "teacher.safetensors")
        kwargs = setting("teacher.model.kwargs", {**small, "num_classes": 0})
        weights = setting("teacher.weights", str(tmp_path / "teacher.safetensors"))
        named = setting("teacher.model.name", name)
        source = f"data.source=folder:{photos}"
        return (*SHORT, source, named, kwargs, weights, "teacher.model.pretrained=false")

    return settings


def losses(run, term):
    with (run / "curves.csv").open(newline="") as file:
        return [float(line[term]) for line in csv.DictReader(file) if line[term]]


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"])
def test_maps_teach_a_student_of_dearkd(tmp_path, given, name):
    settings = given(224, name)
    record = train("dearkd", tmp_path / "run", recipe=FOLDER / "dearkd.yaml", settings=settings)
    assert (record.scale, record.config["method"]["distill"]) == ("own", "none")
    assert record.teachers["cnn"].name == name
    assert [0 < loss < 10 for loss in losses(tmp_path / "run", "hidden_loss")] == [True, True]


def test_a_teacher_without_classes_is_told_how_to_teach(tmp_path, photos):
    settings = (*SHORT, f"data.source=folder:{photos}", "teacher.model.kwargs={}", "method.distill=pooled")
    with pytest.raises(ConfigError, match=r"has no classes; set teacher\.model\.kwargs\.num_classes=0, .* by its maps"):
        train("dearkd", tmp_path / "run", recipe=FOLDER / "dearkd.yaml", settings=settings)


def test_attention_teaches_a_student_of_mae_lite_which_is_then_finetuned(tmp_path, given, photos):
    recipe = FOLDER / "mae_lite_distill.yaml"
    train("mae_lite_distill", tmp_path / "encoder", recipe=recipe, settings=given(112))
    assert len(losses(tmp_path / "encoder", "attention_loss")) == 2
    own = (*SHORT, f"data.source=folder:{photos}", f"student.weights={tmp_path / 'encoder'}")
    record = train("mae_lite_distill", tmp_path / "run", recipe=recipe, row="finetuned", settings=own)
    assert record.metrics["images"] == 8
    other = (*given(126), "teacher.image_size=126")
    with pytest.raises(ConfigError, match="both must see the same"):
        train("mae_lite_distill", tmp_path / "other", recipe=recipe, settings=other)
