"""Rows differ in their teachers and tokens alone; presets and schedule are as published."""

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
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.recipe import resolve as resolve_recipe
from vitutor_core.schema import RunConfig
from vitutor_core.train import optim
from vitutor_core.train.method import Clock

FIVE = {"none": [], "cnn": ["cnn"], "inn": ["inn"], "cnn_cnn": ["cnn", "cnn2"], "cnn_inn": ["cnn", "inn"]}


@cache
def resolve(scale, row, *settings, preset=None):
    return PAPER.resolve(scale, None, row, settings, preset=preset)


@pytest.mark.parametrize("scale", SCALES)
def test_the_five_settings_differ_in_their_teachers_alone(scale):
    base = resolve(scale, "cnn_inn")
    for row, teachers in FIVE.items():
        config = resolve(scale, row)
        assert list(config.teachers) == teachers
        assert config.student.kwargs["teacher_tokens"] == len(teachers)
        same = {
            "teachers": base.teachers,
            "student": config.student.changed(["kwargs.teacher_tokens=2"]),
            "method": config.method.model_copy(update={"order": base.method.order}),  # of the teachers
        }
        assert config.model_copy(update=same) == base, row


@pytest.mark.parametrize("scale", SCALES)
def test_the_second_cnn_has_another_seed_and_nothing_else(scale):
    path = recipe_path("vitutor_core", scale)
    cnn, second = (resolve_recipe(RunConfig, path, row=row) for row in ("cnn", "cnn2"))
    assert second.seed != cnn.seed
    assert second.changed([f"seed={cnn.seed}"]) == cnn


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("row", ["cnn_1token", "inn_1token", "cnn_inn_1token"])
def test_one_token_is_the_only_difference(scale, row):
    single, several = resolve(scale, row), resolve(scale, row.removesuffix("_1token"))
    assert single.student.kwargs["teacher_tokens"] == 0
    tokens = several.student.kwargs["teacher_tokens"]
    assert single.changed([f"student.kwargs.teacher_tokens={tokens}"]) == several


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
    assert config.student.kwargs.get("predict", "mean") == "mean"
    paper = resolve("imagenet", "sak", preset="paper")
    assert (paper.student.kwargs["predict"], paper.optim.clip_norm) == (0, None)


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
    configs = [resolve("imagenet", row) for row in read_recipe(recipe_path("coadvise", "imagenet")).rows]
    assert name in {of.model.name for config in configs for of in config.teachers.values() if of.model is not None}
