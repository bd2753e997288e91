from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from dearkd.models import Aligner
from vitutor_core.models import read_intermediates


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("dim", "counts"),
    [
        (192, {224: 45_600, 448: 89_280, 1232: 242_160, 512: 101_760, 1024: 201_600}),
        (384, {224: 90_528, 448: 177_216, 1232: 480_624, 512: 201_984, 1024: 400_128}),
        (768, {224: 180_384, 448: 353_088, 1232: 957_552, 512: 402_432, 1024: 797_184}),
    ],
)
def test_parameter_counts(dim, counts):
    assert {channels: count(Aligner(dim, channels, (14, 14))) for channels in counts} == counts


@pytest.mark.parametrize("size", [(28, 28), (14, 14), (7, 7)])
def test_shapes_of_the_papers_teacher(size):
    aligner = Aligner(192, 448, size)
    out = aligner(torch.randn(2, 192, 14, 14))
    assert out.shape == (2, 448, *size)
    assert (out >= 0).all()
    assert (out == 0).any()
    assert aligner.conv[0].weight.shape == (192, 1, 3, 3)


def randomised(size: tuple[int, int], **options) -> Aligner:
    torch.manual_seed(0)
    aligner = Aligner(6, 9, size, **options).double()
    with torch.no_grad():
        for parameter in aligner.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return aligner


def normalised(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """LayerNorm over the channels of each position, written out."""
    mean, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-6).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


@pytest.mark.parametrize("size", [(8, 10), (4, 5)])
@pytest.mark.parametrize("act", [True, False])
def test_order_is_interpolation_depthwise_pointwise_norm_activation(size, act):
    aligner = randomised(size, act=act)
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    depthwise, pointwise = aligner.conv
    wide = F.interpolate(x, size, mode="bilinear", align_corners=False)
    windows = F.unfold(wide, 3, padding=1).reshape(2, 6, 9, -1)
    y = torch.einsum("bcks,ck->bcs", windows, depthwise.weight.reshape(6, 9)) + depthwise.bias[:, None]
    y = torch.einsum("bcs,oc->bos", y, pointwise.weight[..., 0, 0]) + pointwise.bias[:, None]
    expected = normalised(y.reshape(2, 9, *size), aligner.norm)
    expected = expected.clamp(min=0) if act else expected
    torch.testing.assert_close(aligner(x), expected, rtol=0, atol=1e-10)
    assert bool((aligner(x) < 0).any()) is not act


def test_grouped_channel_map_is_one_convolution():
    aligner = randomised((4, 5), channel_map="grouped")
    x = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    (convolution,) = aligner.conv
    assert convolution.weight.shape == (9, 2, 3, 3)
    y = torch.cat(
        [F.conv2d(x[:, 2 * g : 2 * g + 2], convolution.weight[3 * g : 3 * g + 3], padding=1) for g in range(3)], dim=1
    )
    expected = normalised(y + convolution.bias[:, None, None], aligner.norm).clamp(min=0)
    torch.testing.assert_close(aligner(x), expected, rtol=0, atol=1e-10)


def test_class_token_does_not_matter():
    torch.manual_seed(0)
    model = timm.create_model(
        "dearkd_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=4, mhca_blocks=1
    ).eval()
    seen = {}
    model.blocks[0].register_forward_hook(lambda _m, _i, output: seen.update(tokens=output))
    images = torch.randn(1, 3, 16, 16)
    aligner = Aligner(24, 6, (8, 8))
    expected = aligner(read_intermediates(model, images, features=(0,)).features[0])
    handle = model.blocks[0].register_forward_hook(
        lambda _m, _i, output: torch.cat([torch.full_like(output[:, :1], 1e3), output[:, 1:]], dim=1)
    )
    changed = read_intermediates(model, images, features=(0,))
    handle.remove()
    assert torch.equal(aligner(changed.features[0]), expected)
    assert (changed.tokens[:, 0] - model.forward_features(images)[:, 0]).abs().max() > 0.1
