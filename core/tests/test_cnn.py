from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitutor_core.models import cnn

MODELS = [("resnet18_cifar", 32, (64, 128, 256, 512)), ("resnet8_tiny", 16, (16, 32, 64))]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet10_cifar", 4_903_242),
        ("resnet18_cifar", 11_173_962),
        ("resnet34_cifar", 21_282_122),
        ("resnet50_cifar", 23_520_842),
        ("resnet8_tiny", 78_042),
    ],
)
def test_parameter_counts(name, parameters):
    assert count(timm.create_model(name)) == parameters


def test_the_cifar_stem_is_the_only_difference_from_timms_resnet():
    ours, timms = timm.create_model("resnet18_cifar"), timm.create_model("resnet18", num_classes=10)
    different = {
        name
        for name, value in timms.state_dict().items()
        if name not in ours.state_dict() or ours.state_dict()[name].shape != value.shape
    }
    assert different == {"conv1.weight"}
    assert ours.conv1.weight.shape == (64, 3, 3, 3)


def test_tiny_model_costs_three_million_multiplications():
    model = timm.create_model("resnet8_tiny").eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 16, 16))
    stem, layer1 = 256 * 3 * 16 * 9, 256 * 2 * 16 * 16 * 9
    layer2 = 64 * (16 * 32 * 9 + 32 * 32 * 9 + 16 * 32)
    layer3 = 16 * (32 * 64 * 9 + 64 * 64 * 9 + 32 * 64)
    assert counter.get_total_flops() == 2 * (stem + layer1 + layer2 + layer3 + 64 * 10)
    assert counter.get_total_flops() // 2 < 3.2e6


@pytest.mark.parametrize(("name", "side", "channels"), MODELS)
def test_stage_maps_have_the_listed_strides_and_channels(name, side, channels):
    model = timm.create_model(name).eval()
    images = torch.randn(2, 3, side, side)
    final, maps = model.forward_intermediates(images, indices=list(range(len(model.feature_info))))
    assert [info["module"] for info in model.feature_info] == ["act1", *(f"layer{i + 1}" for i in range(len(channels)))]
    assert [info["reduction"] for info in model.feature_info] == [1, *(2**stage for stage in range(len(channels)))]
    for info, map_, expected in zip(model.feature_info, maps, (channels[0], *channels), strict=True):
        assert info["num_chs"] == expected
        assert map_.shape == (2, expected, side // info["reduction"], side // info["reduction"])
        assert (map_ >= 0).all()
    assert torch.equal(model.forward_head(final), model(images))
    assert torch.equal(final, maps[-1])


@pytest.mark.parametrize(("name", "side", "channels"), MODELS)
def test_standard_arguments(name, side, channels):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1).eval()
    assert model(torch.zeros(1, 1, side, side)).shape == (1, 7)
    features = timm.create_model(name, features_only=True).eval()
    assert [map_.shape[1] for map_ in features(torch.zeros(1, 3, side, side))] == [channels[0], *channels]
    assert model.default_cfg["input_size"] == (3, side, side)
    assert cnn.default_cfgs[name].default.num_classes == 10


@pytest.mark.parametrize(("name", "side", "channels"), MODELS)
def test_seed_determines_the_weights(name, side, channels):
    torch.manual_seed(3)
    first = timm.create_model(name)
    torch.manual_seed(3)
    second = timm.create_model(name)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    # The stem is initialised as the other convolutions: fan-out Kaiming.
    assert first.conv1.weight.std().item() == pytest.approx((2 / (9 * channels[0])) ** 0.5, rel=0.1)
