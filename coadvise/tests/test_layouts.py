"""A checkpoint of the released student gives the logits of that network, written down slowly."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from coadvise.models.layouts import CIT
from core.tests.published import Official, involution_stem, transformer
from vitutor_core.models.convert import convert


@pytest.fixture(scope="module")
def images():
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def student(weights, pixels, *, width=384, depth=12, heads=6):
    """Both stems, their means as tokens and their sum as patches; the logits of class, conv and inv token."""
    x = pixels
    for index, (kernel, stride) in zip((0, 3, 6), ((7, 2), (3, 1), (3, 1)), strict=True):
        x = weights.conv(x, f"conv_embed.conv.{index}", 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        x = F.relu(weights.batch_norm(x, f"conv_embed.conv.{index + 1}"))
    stems = {"conv": x, "inv": involution_stem(weights, pixels, "inv_embed.stem")}
    tokens = [
        weights.conv(map_, f"{name}_embed.proj", width, 8, stride=8).flatten(2).transpose(1, 2)
        for name, map_ in stems.items()
    ]
    means = [part.mean(1, keepdim=True) for part in tokens]
    x = torch.cat([weights("cls_token", 1, 1, width).expand(len(pixels), -1, -1), *means, sum(tokens)], dim=1)
    x = x + weights("pos_embed", 1, x.shape[1], width)
    x = weights.layer_norm(transformer(weights, x, "blocks.", depth=depth, heads=heads), "norm", 1e-6)
    return [weights.linear(x[:, index], name, 1000) for index, name in enumerate(("head", "head_conv", "head_inv"))]


def test_the_released_student(images):
    weights = Official()
    with torch.no_grad():
        expected = student(weights, images)
    assert sum(value.numel() for name, value in weights.items() if not re.search("running|tracked", name)) == 25_776_138
    found = convert(weights, where="file")
    assert (found.card.name, found.card.image_size) == ("cit_small_aligned_patch16_224", 224)
    with torch.no_grad():
        model = found.model.double().eval()
        logits, of_tokens = model(images), model.token_logits(model.forward_features(images))
    for got, wanted in zip((*of_tokens, logits), (*expected, sum(expected) / 3), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
        assert wanted.std() > 1e-3


def test_every_rule_of_the_table_is_used_and_every_name_is_known(images):
    weights = Official()
    with torch.no_grad():
        student(weights, images[..., :32, :32], width=12, depth=1, heads=2)
    used = {next((rule for rule in CIT.renames if re.match(rule[0], name)), None) for name in weights}
    assert used - {None} == set(CIT.renames)
