"""The rows of the recipes are those of the paper's tables and of the graph; presets and schedule are as published."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from coadvise.cli import PAPER
from vitutor_core.cli.options import SCALES
from vitutor_core.graph.stages import read_graph
from vitutor_core.models.weights import create_model
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.recipe import resolve as resolve_recipe
from vitutor_core.report.paper import load_paper_results, split_row
from vitutor_core.schema import RunConfig
from vitutor_core.train import optim
from vitutor_core.train.method import Clock

ROOT = Path(__file__).parents[2]
FIVE = ("none", "cnn", "inn", "cnn_cnn", "cnn_inn")
GROUPS = ("coadvise_alone", "coadvise_one", "coadvise_two")


@cache
def resolve(scale, row, *settings, preset=None):
    return PAPER.resolve(scale, None, row, settings, preset=preset)


@cache
def rows(scale):
    return read_recipe(recipe_path("coadvise", scale)).rows


def recipes(config):
    """The teachers of a row that are trained by a stage of their own."""
    return sorted(teacher.recipe for teacher in config.teachers.values() if teacher.recipe)


@pytest.mark.parametrize("scale", SCALES)
def test_teachers_of_the_recipes_are_valid(scale):
    path = recipe_path("vitutor_core", scale)
    for row in sorted(read_graph(scale).teachers):
        config = resolve_recipe(RunConfig, path, row=row)
        assert timm.is_model(config.student.name)
    cnn, second = (resolve_recipe(RunConfig, path, row=row) for row in ("cnn", "cnn2"))
    assert second.seed != cnn.seed
    assert second.changed([f"seed={cnn.seed}"]) == cnn


def test_every_row_of_the_tables_is_a_row_of_the_imagenet_recipe():
    paper = load_paper_results(Path(str(recipe_path("coadvise", "imagenet").parents[1])) / "paper_results.yaml")
    printed = {split_row(row)[0] for table in paper.tables for row in table.reproduced()}
    assert printed == set(rows("imagenet"))
    assert {table.id for table in paper.tables} == {*(f"table{number}" for number in range(1, 10)), "figure4"}
    assert set(rows("digits")) <= set(rows("cifar100")) <= set(rows("imagenet"))


@pytest.mark.parametrize("scale", SCALES)
def test_the_five_settings_differ_in_their_teachers_alone(scale):
    base = resolve(scale, "cnn_inn")
    for row in FIVE:
        config = resolve(scale, row)
        assert (config.data, config.optim, config.train, config.augment) == (
            base.data,
            base.optim,
            base.train,
            base.augment,
        )
        assert config.student.name == base.student.name
        assert config.student.kwargs["teacher_tokens"] == len(config.teachers)
        rest = {name: value for name, value in config.student.kwargs.items() if name != "teacher_tokens"}
        assert rest == {name: value for name, value in base.student.kwargs.items() if name != "teacher_tokens"}
    assert [list(resolve(scale, row).teachers) for row in FIVE] == [
        [],
        ["cnn"],
        ["inn"],
        ["cnn", "cnn2"],
        ["cnn", "inn"],
    ]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", ["cnn_1token", "inn_1token", "cnn_inn_1token"])
def test_one_token_is_the_only_difference(scale, row):
    single, several = resolve(scale, row), resolve(scale, row.removesuffix("_1token"))
    assert single.student.kwargs["teacher_tokens"] == 0
    tokens = several.student.kwargs["teacher_tokens"]
    assert single.changed([f"student.kwargs.teacher_tokens={tokens}"]) == several


@pytest.mark.parametrize("scale", ["cifar100", "imagenet"])
def test_every_student_can_be_built(scale):
    for row in rows(scale):
        config = resolve(scale, row)
        with torch.device("meta"):
            student = create_model(config.student, num_classes=100, image_size=config.data.image_size, channels=3)
        if config.student.name.startswith("cit_"):
            assert len(student.teacher_heads) == config.student.kwargs["teacher_tokens"]


@pytest.mark.parametrize("scale", SCALES)
def test_presets_are_valid_for_every_row(scale):
    for preset in ("official", "paper"):
        for row in rows(scale):
            resolve(scale, row, preset=preset)
    paper, official = (resolve(scale, "cnn_inn", preset=preset) for preset in ("paper", "official"))
    assert paper.student.kwargs["predict"] == 0
    assert official.student.kwargs.get("predict", "mean") == "mean"
    assert (paper.optim.clip_norm, official.optim.clip_norm) == (None, 15.0)


def test_the_official_preset():
    config = resolve("imagenet", "sak", preset="official")
    assert optim.peak_lr(config.optim, config.train.batch_size) == 1e-3
    assert (config.train.epochs, config.train.batch_size, config.train.precision) == (300, 1024, "fp32")
    assert (config.optim.name, config.optim.weight_decay, config.optim.clip_norm) == ("adamw", 0.05, 15.0)
    assert (config.optim.warmup_epochs, config.optim.warmup_lr, config.optim.min_lr) == (20, 1e-6, 1e-5)
    augment = config.augment
    assert (augment.mixup, augment.cutmix, augment.label_smoothing, augment.repeats) == (0.8, 1.0, 0.1, 1)
    assert (augment.rand_augment, augment.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert "drop_path_rate" not in config.student.kwargs
    assert config.train.ema_decay is None
    assert (config.data.class_list, resolve("imagenet", "cnn_inn").data.class_list) == (None, "imagenet100")
    assert config.method.direction == "teacher_student"
    assert (config.method.label_weight, config.method.weights, config.method.temperatures) == (1.0, {}, {})


def test_the_learning_rate_is_the_official_one_an_update_earlier():
    """The released code sets the rate of update t after that update, so that update t + 1 runs with it."""
    case = load_file(Path(__file__).parent / "golden" / "lr_schedule.safetensors")
    config, updates = resolve("imagenet", "sak", preset="official"), 1251
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=optim.peak_lr(config.optim, config.train.batch_size))
    schedule = optim.build_schedule(optimizer, config.optim, config.train.epochs, updates)
    found = []
    for step in case["input.t"].tolist():
        optim.set_learning_rate(schedule, Clock(step, updates, config.train.epochs * updates))
        found.append(optimizer.param_groups[0]["lr"])
    expected = case["expected.lr"]
    assert (torch.tensor(found, dtype=torch.float64) - expected).abs().max() <= 1e-10 * expected.abs().max()
    for step, rate in {0: 1e-6, 20 * updates - 1: 1e-3, 20 * updates: 0.98918e-3, 300 * updates - 1: 1e-5}.items():
        optim.set_learning_rate(schedule, Clock(step, updates, config.train.epochs * updates))
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("name", ["regnety_006.pycls_in1k", "regnety_040.pycls_in1k"])
def test_published_teachers_are_those_of_the_paper(name):
    cfg = timm.get_pretrained_cfg(name)
    assert (cfg.num_classes, cfg.tag) == (1000, "pycls_in1k")
    assert name in {
        teacher.model.name
        for row in rows("imagenet")
        for teacher in resolve("imagenet", row).teachers.values()
        if teacher.model is not None
    }
