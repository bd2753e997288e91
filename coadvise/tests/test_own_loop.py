"""Co-advise around models that are at hand: the README's example."""

from __future__ import annotations

import pytest
import timm
import torch

from coadvise import CoAdvise, ObjectiveConfig
from coadvise.losses import divergence, label_loss
from conformance.readme import run_example, trained
from vitutor_core.errors import ConfigError


def test_the_example_of_the_readme():
    names = run_example("coadvise")
    assert trained(names["coadvise"])
    assert names["output"].parts.keys() == {"label_loss", "regnety_002_loss", "rednet26_loss"}
    assert all(parameter.grad is None for model in names["teachers"].values() for parameter in model.parameters())


def test_one_output_takes_all_terms():
    torch.manual_seed(0)
    student, teacher = (timm.create_model("resnet10t", num_classes=3).eval() for _ in range(2))
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    own = CoAdvise(student, {"cnn": teacher}, ObjectiveConfig(weights={"cnn": 0.5}))
    expected = label_loss([student(images)], labels) + 0.5 * divergence(student(images), teacher(images))
    torch.testing.assert_close(own(images, labels).loss, expected)
    with pytest.raises(ConfigError, match="teachers: 1 for the 2 teacher tokens of cit_tiny_patch16_224"):
        CoAdvise(timm.create_model("cit_tiny_patch16_224", teacher_tokens=2, num_classes=3), {"cnn": teacher})
