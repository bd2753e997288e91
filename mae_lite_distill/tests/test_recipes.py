"""Comparisons are fair at every scale, and the paper's settings are its own at its scale."""

from __future__ import annotations

from functools import cache

import pytest
import timm
from torch import nn

from mae_lite_distill.cli import PAPER
from vitutor_core.cli.options import SCALES
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.train.optim import build_optimizer, peak_lr
from vitutor_core.train.supervised import Supervised


@cache
def rows(scale):
    names = read_recipe(recipe_path("mae_lite_distill", scale)).rows
    return {name: PAPER.resolve(scale, None, name, ()) for name in names}


def body(config):
    """The arguments of a student that decide the shapes of its weights."""
    return {name: of for name, of in config.student.kwargs.items() if name not in {"global_pool", "drop_path_rate"}}


@pytest.mark.parametrize("scale", SCALES)
def test_a_row_fits_the_row_that_it_starts_from(scale):
    for config in rows(scale).values():
        if config.student.start_row is not None:
            start = rows(scale)[config.student.start_row]
            assert body(config) == body(start)
            # The backbone of a detector has its positions resampled.
            assert config.data.image_size == start.data.image_size or config.detect is not None
        if config.teacher is not None and config.teacher.row is not None:
            students = rows(scale)[config.teacher.row].student, config.student
            assert len({student.kwargs.get("patch_size") for student in students}) == 1


@pytest.mark.parametrize("scale", SCALES)
def test_rows_that_are_compared_have_one_budget(scale):
    configs = rows(scale)
    pretrainings = ("mae", "mae_distilled", "moco")
    others = [name for name in ("dino", "simmim") if name in configs]
    assert len({configs[name].train.epochs for name in (*pretrainings, *others)}) == 1
    assert configs["mae"].changed(["optim.lr=1"]).optim == configs["mae_distilled"].changed(["optim.lr=1"]).optim
    assert configs["mae"].augment == configs["mae_distilled"].augment
    for kind in ("finetune", "probe"):
        compared = [configs[f"{name}_{kind}"] for name in pretrainings]
        compared.append(configs["scratch" if kind == "finetune" else "scratch_probe"])
        if kind == "finetune":
            compared = [*(configs[f"{name}_finetune"] for name in others), *compared]
        shared = [(c.optim.changed(["layer_decay=null"]), c.train, c.augment, c.data) for c in compared]
        assert shared == [shared[-1]] * len(shared)
        assert compared[-1].optim.layer_decay is None


@pytest.mark.parametrize("scale", ["cifar100", "imagenet"])
def test_subsets_are_for_pretraining_only(scale):
    for name in ("1", "10", "lt"):
        for method in ("mae", "moco"):
            subset, whole = rows(scale)[f"{method}_{name}"], rows(scale)[method]
            assert subset.data != whole.data
            assert subset.train.epoch_length == "full"
            assert (subset.train, subset.optim) == (whole.train, whole.optim)
            assert rows(scale)[f"{method}_{name}_finetune"].data == whole.data


def test_the_papers_settings_at_its_scale():
    configs = rows("imagenet")
    mae, moco, tuned = configs["mae"], configs["moco"], configs["mae_finetune"]
    assert peak_lr(mae.optim, mae.train.batch_size) == pytest.approx(2.4e-3)
    assert (mae.optim.betas, mae.optim.weight_decay, mae.optim.warmup_epochs) == ((0.9, 0.95), 0.05, 40)
    assert (mae.mae.decoder_width, mae.mae.decoder_depth, mae.mae.decoder_heads) == (96, 1, 3)
    assert peak_lr(moco.optim, moco.train.batch_size) == pytest.approx(6e-4)
    assert moco.optim.weight_decay == 0.1
    assert peak_lr(tuned.optim, tuned.train.batch_size) == pytest.approx(4e-3)
    assert (tuned.optim.layer_decay, configs["moco_finetune"].optim.layer_decay) == (0.85, 0.75)
    assert (tuned.augment.mixup, tuned.augment.cutmix, tuned.augment.label_smoothing) == (0.2, 0, 0)
    assert configs["mae_distilled"].mae.distill_layers == (12,)
    assert configs["mae_decoupled"].mae.decouple_after == 8
    deit = configs["deit_tiny_distilled"]
    assert (deit.train.epochs, peak_lr(deit.optim, deit.train.batch_size)) == (1000, pytest.approx(1e-3))
    assert (deit.optim.warmup_lr, deit.optim.min_lr, deit.optim.layer_decay) == (1e-6, 1e-5, None)
    assert (deit.augment.repeats, deit.teacher.model.name) == (3, "regnety_160.deit_in1k")
    assert configs["supervised_21k"].student.pretrained
    assert configs["supervised_21k"].changed(["student.pretrained=false"]).optim == tuned.optim


def test_seed_has_plain_momentum():
    """SEED trains by SGD without Nesterov's momentum, which timm's "sgd" has."""
    seed = rows("imagenet")["seed"]
    groups = build_optimizer(Supervised(nn.Linear(2, 2)), seed.optim, seed.train.batch_size).param_groups
    assert {(group["nesterov"], group["momentum"], group["lr"]) for group in groups} == {(False, 0.9, 0.12)}


def test_weights_of_imagenet_21k():
    # 300 epochs on ImageNet-21k, whose head is left out.
    published = timm.get_pretrained_cfg(rows("imagenet")["supervised_21k"].student.name)
    assert "i21k-300ep" in published.url
    assert published.num_classes == 21_843
