"""Bootstrapping ViTs around a model that is at hand: the README's example."""

from __future__ import annotations

import pytest
import timm
import torch

from bootstrapping_vit import Joint, ObjectiveConfig
from conformance.readme import run_example, trained
from vitutor_core.errors import ConfigError


def test_the_example_of_the_readme():
    names = run_example("bootstrapping_vit")
    assert trained(names["joint"])
    assert set(names["vit"].state_dict()) == set(timm.create_model("vit_tiny_patch16_224").state_dict())


def test_the_feature_loss_decays_with_the_epoch():
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2, img_size=32)
    joint = Joint(vit, epochs=4).eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    first, last = (joint(images, labels, epoch=epoch) for epoch in (0, 3))
    torch.testing.assert_close(first.loss - last.loss, 10 * 0.75 * first.parts["feature_loss"])


def test_what_does_not_fit_is_one_line():
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
    with pytest.raises(ConfigError, match="Algorithm 1 is no single backward pass; set align=False"):
        Joint(vit, terms=ObjectiveConfig(mode="shared"))
    assert Joint(vit, terms=ObjectiveConfig(mode="shared", align=False)).method.agent is not None
