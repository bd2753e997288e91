"""DearKD around models that are at hand: the README's example, and pairs that fit any teacher."""

from __future__ import annotations

import pytest
import timm
import torch

from conformance.readme import run_example, trained
from dearkd import Distiller, ObjectiveConfig
from dearkd.pairs import auto_pairs
from vitutor_core.errors import ConfigError


def test_the_example_of_the_readme():
    names = run_example("dearkd")
    distiller = names["distiller"]
    assert trained(distiller)
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())
    assert distiller.method._pairs == ((4, "s2"), (8, "s3"))  # the recipe's, found by their shapes
    assert set(names["student"].state_dict()) == set(timm.create_model("vit_tiny_patch16_224").state_dict())


@pytest.mark.parametrize(
    ("teacher", "scale", "expected"),
    [
        ("regnety_160", 1.0, ((4, "s2"), (8, "s3"))),
        ("resnet18", 1.0, ((4, "layer2"), (8, "layer3"))),
        ("convnext_atto", 1.0, ((4, "stages.1"), (8, "stages.2"))),
        ("resnet18", 0.5, ((4, "layer3"), (8, "layer4"))),  # images of half the teacher's size
        ("vit_tiny_patch16_224", 1.0, ((8, "blocks.11"),)),  # one size of cells
        ("resnet18", 100.0, ((8, "act1"),)),  # all cells are larger than a patch
    ],
)
def test_auto_pairs(teacher, scale, expected):
    with torch.device("meta"):
        student, model = timm.create_model("deit_tiny_patch16_224"), timm.create_model(teacher)
    assert auto_pairs(student, model, scale=scale) == expected


def test_auto_takes_no_relu_where_maps_have_both_signs():
    student = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=64)
    for teacher, name in (("resnet10t", "ReLU"), ("convnext_atto", "Identity")):
        distiller = Distiller(student, timm.create_model(teacher, num_classes=3))
        assert {type(aligner.act).__name__ for aligner in distiller.method.aligners} == {name}
        assert distiller(torch.randn(2, 3, 64, 64), torch.tensor([0, 1])).loss.isfinite()


def test_what_does_not_fit_is_one_line():
    vit, cnn = (timm.create_model(name, num_classes=3) for name in ("vit_tiny_patch16_224", "resnet10t"))
    with pytest.raises(ConfigError, match="the teacher knows 4 classes, the student 3"):
        Distiller(vit, timm.create_model("resnet10t", num_classes=4))
    with pytest.raises(ConfigError, match=r"method\.distill=pooled: resnet10t has no patch tokens"):
        Distiller(cnn, vit)
    with pytest.raises(ConfigError, match=r"method\.pairs=auto: the student has no blocks of patches"):
        Distiller(cnn, vit, ObjectiveConfig(distill="none", pairs="auto"))
