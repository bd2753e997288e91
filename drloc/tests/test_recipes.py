"""Rows share their budget with their baselines and fit their backbones; settings and gains are as printed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from drloc import DRLoc
from drloc.cli import PAPER
from vitutor_core.cli.options import SCALES
from vitutor_core.errors import ConfigError
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import create_model
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.report.paper import load_paper_results
from vitutor_core.train import optim

FAMILIES = ("vit", "swin", "cvt", "t2t", "resnet")
WEIGHTS = {"vit": 0.5, "swin": 0.5, "cvt": 0.1, "t2t": 0.1, "resnet": 0.5}


@cache
def rows(scale):
    return tuple(read_recipe(recipe_path("drloc", scale)).rows)


@cache
def resolve(scale, row):
    return PAPER.resolve(scale, None, row, ())


@pytest.mark.parametrize("scale", SCALES)
def test_a_row_differs_from_its_baseline_in_the_loss_alone(scale):
    for row in rows(scale):
        config, family = resolve(scale, row), row.split("_")[0]
        if "_drloc" not in row:
            assert config.method.weight == 0, row
            continue
        names = row.split("_")
        sweep = {"m32", "m128", "m256", "w01", "w05", "w10", "signed", "ce", "reg", "all"}
        plain = "_".join(name for name in names if name not in sweep | {"drloc"})
        if sweep & {"signed", "ce", "reg", "all"} & set(names):
            plain += "_short"
        baseline = resolve(scale, plain)
        without = {"method": baseline.method, "seed": config.seed}
        assert config.model_copy(update=without) == baseline, row
        weight = {"w01": 0.1, "w05": 0.5, "w10": 1.0}.get(names[-1], WEIGHTS[family])
        assert config.method.weight == weight, row


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_grid_of_the_loss(scale, family):
    config = resolve(scale, f"{family}_drloc")
    with torch.device("meta"):
        student = create_model(config.student, num_classes=10, image_size=config.data.image_size, channels=3)
        size = (3, config.data.image_size, config.data.image_size)
        drloc = DRLoc(student, config.method, input_size=size)
        (grid,) = drloc.grids(student, torch.empty(1, *size))[1]
    assert tuple(grid.shape[2:]) == ((7, 7) if scale == "imagenet" else (4, 4))


def test_the_imagenet_recipe_is_the_released_one_on_one_gpu():
    config = resolve("imagenet", "swin_drloc")
    peak = optim.peak_lr(config.optim, config.train.batch_size)
    assert (peak, config.optim.warmup_lr, config.optim.min_lr) == (1.25e-4, 1.25e-7, 1.25e-6)
    assert (config.optim.weight_decay, config.optim.warmup_epochs, config.optim.clip_norm) == (0.05, 20, 5.0)
    assert config.optim.schedule_unit == "update"
    augment = config.augment
    assert (augment.mixup, augment.cutmix, augment.label_smoothing, augment.flip) == (0.8, 1.0, 0.1, 0.5)
    assert (augment.random_erasing, augment.rand_augment) == (0.25, "rand-m9-mstd0.5-inc1")
    assert config.student.kwargs["drop_path_rate"] == 0.2


def test_data_sets_and_lengths_of_the_tables():
    def data(row):
        config = resolve("imagenet", row)
        return config.data.source, config.data.class_list, config.train.epochs

    assert data("swin") == ("cifar100", None, 100)
    assert data("swin_short") == ("folder:imagenet", "imagenet100", 100)
    assert data("t2t_drloc_long") == ("folder:imagenet", "imagenet100", 300)
    assert data("cvt_flowers") == ("torchvision:flowers102", None, 100)
    assert data("resnet_drloc_finetune_quickdraw") == ("domainnet:quickdraw", None, 100)
    assert data("swin_finetune") == ("cifar100", None, 100)
    assert resolve("imagenet", "t2t_finetune").student.kwargs["qk_scale"] == pytest.approx(384**-0.5)
    assert resolve("cifar100", "swin_drloc_finetune_svhn").student.start_row == "swin"
    assert resolve("digits", "swin_drloc_finetune").student.start_row == "swin_pretrain"


def test_fine_tuning_starts_from_weights_or_not_at_all():
    for family in ("swin", "resnet"):
        student = resolve("imagenet", f"{family}_finetune").student
        assert student.pretrained
        assert named_model(student.name).classes == 1000
    # timm has no weights of T2T-ViT; the row must not train from scratch without a word.
    student = resolve("imagenet", "t2t_finetune").student
    with pytest.raises(ConfigError, match="No pretrained weights exist for t2t_vit_14"), torch.device("meta"):
        create_model(student, num_classes=10, image_size=224, channels=3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("table4", (40, -0.46, 45.33)), ("table5", (30, 0.01, 7.16))],  # the abstract's largest gain, and the one loss
)
def test_the_number_and_the_range_of_the_gains_of_a_table(name, expected):
    found = []
    for table in load_paper_results(Path(str(files("drloc"))) / "paper_results.yaml").tables:
        printed = table.reproduced()
        pairs = [(printed[pair.row].value, printed[pair.to].value) for pair in table.comparisons]
        if table.id.startswith(name):
            found += [round(with_loss - without, 2) for with_loss, without in pairs if without is not None]
    assert (len(found), min(found), max(found)) == expected
