"""The rows are what the paper and its released code say of them, and differ in nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bootstrapping_vit.cli import PAPER
from vitutor_core.cli.options import SCALES
from vitutor_core.data.sources.subsets import subset_indices
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_model
from vitutor_core.paper import load
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.train import optim

METHOD = load(PAPER.method)
TABLE_2 = {"vit": (6, 288, 9), "vit_b": (12, 384, 6), "agent": (6, 288, 9), "agent_b": (12, 384, 6)}
TABLE_4 = {  # distillation, features, decay, adapter
    "joint_kd": (True, False, "linear", "1d"),
    "joint_feat_nodecay": (False, True, "none", "1d"),
    "joint_feat": (False, True, "linear", "1d"),
    "joint_feat_ap2d": (False, True, "linear", "2d"),
    "joint_nodecay": (True, True, "none", "1d"),
    "joint": (True, True, "linear", "1d"),
}


def resolve(scale, row, *settings, preset=None):
    return PAPER.resolve(scale, None, row, settings, preset=preset)


def rows(scale):
    return read_recipe(recipe_path("bootstrapping_vit", scale)).rows


@pytest.mark.parametrize("row", TABLE_2)
def test_table_2(row):
    with torch.device("meta"):
        model = create_model(resolve("cifar100", row).student, num_classes=100, image_size=32, channels=3)
    heads = getattr(model, "num_heads", None) or model.blocks[0].attn.num_heads
    assert (len(model.blocks), model.embed_dim, heads) == TABLE_2[row]


@pytest.mark.parametrize(
    ("scale", "row"), [(scale, row) for scale in ("digits", "cifar100") for row in TABLE_4 if row in rows(scale)]
)
def test_table_4(scale, row):
    terms = resolve(scale, row).method
    assert (terms.distill, terms.w_feat > 0, terms.decay, terms.adapter) == TABLE_4[row]


@pytest.mark.parametrize("scale", SCALES)
def test_rows_share_the_budget(scale):
    base = resolve(scale, None)
    for row in rows(scale):
        if row.startswith(("resnet50", "efficientnet", "pretrained")):
            continue  # the paper trains them in other ways
        config = resolve(scale, row, "optim.clip_norm=null")
        assert (config.optim, config.train, config.augment) == (base.optim, base.train, base.augment), row


def test_cifar_is_the_released_recipe():
    config = resolve("cifar100", "joint")
    assert (config.train.epochs, config.train.batch_size) == (240, 64)
    chosen = config.optim
    assert (chosen.name, chosen.lr, chosen.weight_decay, chosen.min_lr) == ("adamw", 1e-3, 0.05, 0)
    assert (chosen.schedule, chosen.schedule_unit, chosen.warmup_epochs) == ("cosine", "epoch", 0)
    assert chosen.clip_norm is None
    assert (config.augment.pad_crop, config.augment.flip) == (4, 0.5)
    assert resolve("cifar100", "vit").optim.clip_norm == resolve("cifar100", "vit_b_sparse").optim.clip_norm == 0.1
    assert resolve("cifar100", "vit_sam").optim.clip_norm is None
    cnn = resolve("cifar100", "resnet50").optim
    assert (cnn.name, cnn.lr, cnn.weight_decay, cnn.momentum) == ("momentum", 0.05, 5e-4, 0.9)
    assert resolve("cifar100", "resnet50_m0").optim.momentum == 0


def test_resnet_is_trained_by_plain_momentum(info):
    config = resolve("cifar100", "resnet50", "student.name=resnet8_tiny", "student.kwargs={}")
    optimizer = optim.build_optimizer(METHOD.build(config, info), config.optim, 64)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, False)}


def test_official_preset():
    config = resolve("cifar100", "shared", preset="official")
    assert (config.student.kwargs["init"], config.agent.kwargs["init"]) == ("official", "official")
    patches = config.student.kwargs["patch_size"], config.agent.kwargs["patch_size"]
    assert (config.data.image_size, *patches) == (224, 16, 16)
    assert config.agent.kwargs["down"] == (0, 1)
    assert not config.method.align
    assert config.method.decay_all
    assert resolve("cifar100", "shared_b", preset="official").agent.kwargs["down"] == (2, 8)


def test_paper_and_literal_presets():
    config = resolve("cifar100", "shared", preset="paper")
    assert config.method.align
    assert config.augment.crop_scale is not None
    assert config.agent.kwargs["tap_after_down"]
    literal = resolve("cifar100", "joint", preset="literal").method
    assert (literal.w_mutual, literal.w_feat) == (10, 1)
    with pytest.raises(ConfigError, match="no preset"):
        resolve("cifar100", "joint", preset="offical")


def test_decay_of_everything(info):
    for settings, groups in ((("method.decay_all=true",), [0.05]), ((), [0.0, 0.05])):
        config = resolve("digits", "joint", *settings)
        optimizer = optim.build_optimizer(METHOD.build(config, info), config.optim, 32)
        assert sorted(group["weight_decay"] for group in optimizer.param_groups) == groups


def test_the_released_part_of_imagenet_can_be_drawn():
    expected = load_file(Path(__file__).parent / "golden" / "imagenet_subset.safetensors")
    config = PAPER.resolve("imagenet", None, "joint_b_10", (), preset="official").data
    assert (config.subset_draw, config.fraction) == ("numpy", 0.1)
    for counts, name in (([25, 35, 47], "kept_index"), ([1300] * 1000, "kept_1300")):
        labels = np.repeat(np.arange(len(counts)), counts)
        chosen, starts = subset_indices(labels, config), np.cumsum([0, *counts])
        for key in [key for key in expected if key.startswith(name)]:
            label = int(key.rpartition("class")[2])
            own = chosen[labels[chosen] == label] - starts[label]
            assert own.tolist() == sorted(expected[key].tolist())


@pytest.mark.parametrize(("scale", "rows"), [("digits", ["agent"]), ("cifar100", ["agent", "agent_c10", "agent_base"])])
def test_under_the_official_preset_the_agent_alone_is_the_agent_of_joint_training(scale, rows):
    for row in rows:
        alone = resolve(scale, row, preset="official").student
        joint = resolve(scale, {"agent_base": "joint_base"}.get(row, "joint"), preset="official").agent
        assert alone == joint


@pytest.mark.parametrize("scale", ["cifar100", "imagenet"])
def test_the_released_code_synchronises_batch_norm_but_not_of_shared_weights(scale):
    end = "_b_10" if scale == "imagenet" else ""
    for row, wanted in (("joint", True), ("agent", True), ("shared", False), ("vit", False)):
        config = resolve(scale, f"{row}{end}", preset="official")
        assert config.runtime.sync_batch_norm == wanted
        assert not resolve(scale, f"{row}{end}").runtime.sync_batch_norm
