from __future__ import annotations

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck
from torch import nn

from vitutor_core.evaluate.complexity import complexity
from vitutor_core.models.involution import Involution
from vitutor_core.models.rednet import involution_stem

PARAMETERS = {26: 9_233_166, 38: 12_386_986, 50: 15_540_806, 101: 25_652_950, 152: 33_984_582}
GIGA_MACS = {26: 1.69, 38: 2.17, 50: 2.65, 101: 4.66, 152: 6.68}
SMALL = [("rednet26_cifar", 32, 1, (64, 256, 512, 1024, 2048)), ("rednet_tiny", 16, 2, (32, 64, 128, 256))]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_and_operations(depth):
    with torch.device("meta"):
        model = timm.create_model(f"rednet{depth}")
    assert count(model) == PARAMETERS[depth]
    assert complexity(model, 224)["flops"] / 2e9 == pytest.approx(GIGA_MACS[depth], abs=0.006)
    blocks = [module for module in model.modules() if isinstance(module, Bottleneck)]
    assert 3 * len(blocks) + 2 == depth
    assert all(isinstance(block.conv2, Involution) for block in blocks)


def test_with_fewer_classes():
    with torch.device("meta"):
        assert count(timm.create_model("rednet26", num_classes=100)) == PARAMETERS[26] - 1_844_100


def test_stem():
    assert count(involution_stem(3, 64, 2)) == 19_986
    assert involution_stem(3, 64, 2)(torch.zeros(1, 3, 10, 14)).shape == (1, 64, 5, 7)


def test_stages_of_the_large_network():
    model = timm.create_model("rednet26").eval()
    final, maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), indices=[0, 1, 2, 3, 4])
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 32]
    for info, map_ in zip(model.feature_info, maps, strict=True):
        assert map_.shape == (1, info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
    assert final.shape[1] == model.num_features == 2048


@pytest.mark.parametrize(("name", "side", "stride", "channels"), SMALL)
def test_small_networks(name, side, stride, channels):
    model = timm.create_model(name, num_classes=7, in_chans=1, drop_path_rate=0.1).eval()
    images = torch.randn(2, 1, side, side)
    final, maps = model.forward_intermediates(images, indices=list(range(len(channels))))
    assert [info["module"] for info in model.feature_info] == ["act1", *(f"layer{i}" for i in range(1, len(channels)))]
    assert [info["reduction"] for info in model.feature_info] == [
        stride,
        *(stride * 2**stage for stage in range(len(channels) - 1)),
    ]
    for info, map_, expected in zip(model.feature_info, maps, channels, strict=True):
        assert map_.shape == (2, expected, side // info["reduction"], side // info["reduction"])
    assert torch.equal(model.forward_head(final), model(images))
    assert model(images).shape == (2, 7)
    features = timm.create_model(name, features_only=True).eval()
    assert [map_.shape[1] for map_ in features(torch.zeros(1, 3, side, side))] == list(channels)


def test_a_size_that_would_give_odd_maps_is_refused():
    with pytest.raises(ValueError, match="divisible by the network's stride"):
        timm.create_model("rednet_tiny").eval()(torch.zeros(1, 3, 10, 10))


def test_initialisation():
    torch.manual_seed(0)
    first = timm.create_model("rednet_tiny")
    torch.manual_seed(0)
    second = timm.create_model("rednet_tiny")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    for module in first.modules():
        if isinstance(module, Bottleneck):
            assert not module.bn3.weight.any()  # a block starts as its shortcut
        if isinstance(module, Involution):
            assert not module.generate.bias.any()
            expected = (2 / (module.groups * module.kernel_size**2)) ** 0.5
            assert module.generate.weight.std().item() == pytest.approx(expected, rel=0.15)
