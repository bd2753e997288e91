"""Masked pre-training around models that are at hand: the README's example."""

from __future__ import annotations

import pytest
import timm
import torch

from conformance.readme import run_example, trained
from mae_lite_distill import MAEConfig, MaskedAutoencoder
from vitutor_core.errors import ConfigError


def test_the_example_of_the_readme():
    names = run_example("mae_lite_distill")
    assert trained(names["autoencoder"])
    assert all(parameter.grad is None for parameter in names["teacher"].parameters())
    assert set(names["encoder"].state_dict()) == set(timm.create_model("vit_tiny_patch16_224").state_dict())


def test_without_a_teacher_it_reconstructs_alone():
    torch.manual_seed(0)
    encoder = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1)
    output = MaskedAutoencoder(encoder, config=MAEConfig(mask_ratio=0.5))(torch.randn(2, 3, 32, 32))
    assert output.parts.keys() == {"reconstruction_loss"}
    with pytest.raises(ConfigError, match="encoder: ResNet is not a plain vision transformer of timm"):
        MaskedAutoencoder(timm.create_model("resnet10t"))
