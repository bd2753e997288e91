"""Checkpoints of the released code, of a ViT, an agent and a pair, give the logits of networks written down slowly."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

from bootstrapping_vit.models.layouts import AGENT, VIT
from core.tests.published import Official, assert_close, attend, transformer
from vitutor_core.errors import CheckpointError
from vitutor_core.models.convert import Classes, convert

NAMES = {"qkv": "attention.linear_qkv", "proj": "attention.linear_out", "fc1": "mlp.linear1", "fc2": "mlp.linear2"}
TEN = Classes("0123456789")
SMALL = {"embed_dim": 18, "depth": 3}


def images(side=224):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def vit(weights, pixels, *, width=288, depth=6, heads=9, eps=1e-5, prefix=""):
    """Tokens first, then the batch: positions are (N, 1, D)."""
    patches = weights.conv(pixels, f"{prefix}patch_embed.proj", width, 16, stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([weights(f"{prefix}cls_token", 1, 1, width).expand(len(pixels), -1, -1), patches], dim=1)
    x = x + weights(f"{prefix}pos_embed.pos_embed", x.shape[1], 1, width).transpose(0, 1)
    x = transformer(weights, x, f"{prefix}transformer.layers.", depth=depth, heads=heads, eps=eps, names=NAMES)
    x = weights.layer_norm(x, f"{prefix}transformer.norm", eps)
    return weights.linear(x[:, 0], f"{prefix}cls_head", 10)


def agent(weights, pixels, *, width=288, depth=6, heads=9, down=(0, 1), stem="res", prefix=""):
    """With nine heads the agent of ViT-S, a convolution and norms in front; else that of ViT-B."""
    if stem == "base":
        x = weights.conv(pixels, f"{prefix}input_proj", width, 16, stride=16)
    else:
        x = weights.conv(pixels, f"{prefix}input_proj.conv1", 64, 7, stride=2, padding=3, bias=False)
        x = F.max_pool2d(F.gelu(weights.batch_norm(x, f"{prefix}input_proj.norm")), 3, 2, 1)
        x = weights.conv(x, f"{prefix}input_proj.conv2", width, 3, stride=2, padding=1)
    for number in range(depth):
        layer = f"{prefix}layers.{number}"

        def mix(x, layer=layer):
            if heads == 9:
                return weights.conv(x, f"{layer}.cnn_block.conv", width, 3, padding=1)
            taps = weights(f"{layer}.cnn_block.weight", width, width, heads)
            bias = weights(f"{layer}.cnn_block.bias", width)
            side, padded = x.shape[-1], F.pad(x, (1, 1, 1, 1))
            moved = [padded[..., tap // 3 :, tap % 3 :][..., :side, :side] for tap in range(heads)]
            parts = [torch.einsum("oi,bihw->bohw", taps[..., tap], part) for tap, part in enumerate(moved)]
            return sum(parts) + bias.view(-1, 1, 1)

        def mlp(x, layer=layer):
            hidden = F.gelu(weights.conv(x, f"{layer}.mlp_block.conv1", 4 * width, 1))
            return weights.conv(hidden, f"{layer}.mlp_block.conv2", width, 1)

        for branch, norm in ((mix, f"{layer}.norm1"), (mlp, f"{layer}.norm2")):
            if heads == 9:
                x = x + branch(weights.batch_norm(x, norm))
            else:
                x = x + weights.batch_norm(branch(x), norm)
        if number in down:
            x = F.avg_pool2d(x, 2)
    return weights.linear(F.gelu(weights.batch_norm(x, f"{prefix}bn")).mean((2, 3)), f"{prefix}linear", 10)


def logits(converted, pixels):
    with torch.no_grad():
        return converted.model.double().eval()(pixels)


def test_a_vit_alone():
    weights = Official()
    with torch.no_grad():
        expected = vit(weights, images(), prefix="module.")
    found = convert(weights, where="file", classes=TEN)
    assert found.card.name == "bootstrapping_vit_s_patch16_224"
    assert_close(logits(found, images()), expected)


@pytest.mark.parametrize("stem", ["res", "base"])
def test_an_agent_alone(stem):
    weights = Official()
    with torch.no_grad():
        expected = agent(weights, images(64), stem=stem, down=(0, 1) if stem == "res" else ())
    found = convert(weights, where="file", classes=TEN)
    assert found.card.name == "bootstrapping_agent_s"
    assert_close(logits(found, images(64)), expected)


def test_a_pair_gives_either():
    weights = Official()
    size = {"width": 18, "depth": 3, "heads": 6}
    with torch.no_grad():
        of_agent = agent(weights, images(64), down=(), prefix="models.cnn.", **size)
        of_vit = vit(weights, images(64), eps=1e-6, prefix="models.vit.", **size)
    found = convert(
        weights, where="file", name="bootstrapping_vit_b_patch16_224", kwargs={**SMALL, "num_heads": 6}, classes=TEN
    )
    assert_close(logits(found, images(64)), of_vit)
    assert found.notes[1:] == ("not of the model: agent; --beside FILE keeps it",)
    kwargs = {**SMALL, "num_heads": 6, "down": (), "pre_norm": False}
    found = convert(weights, where="file", name="bootstrapping_agent_b", kwargs=kwargs, classes=TEN)
    assert_close(logits(found, images(64)), of_agent)
    assert found.notes[1:] == ("not of the model: vit; --beside FILE keeps it",)


def test_the_agent_of_shared_weights_has_none_of_its_own():
    weights = Official()
    with torch.no_grad():
        vit(weights, images(64), width=18, depth=3, heads=6, prefix="models.vit.")
        weights.batch_norm(torch.zeros(1, 18, 1, 1).double(), "models.cnn.bn")
        weights("models.cnn.layers.0.cnn_block.mhsa.linear_out.weight", 18, 18)
    kwargs = {**SMALL, "num_heads": 6, "down": (), "pre_norm": False}
    with pytest.raises(CheckpointError, match=r"missing: blocks\.0\.conv\.bias"):
        convert(weights, where="file", name="bootstrapping_agent_b", kwargs=kwargs, classes=TEN)
    found = convert(
        weights, where="file", name="bootstrapping_vit_s_patch16_224", kwargs={**SMALL, "num_heads": 6}, classes=TEN
    )
    assert found.notes[1:] == ("not of the model: agent; --beside FILE keeps it",)


def test_sparse_attention_brings_its_alpha():
    names = ["transformer.layers.2.attention.softmax.alpha", "models.vit.transformer.layers.0.attention.softmax.alpha"]
    assert [VIT.rename(name) for name in names] == ["blocks.2.attn.alpha", "blocks.0.attn.alpha"]
    assert attend(*torch.zeros(3, 1, 2, 4), 2, 1.0).shape == (1, 2, 4)


@pytest.mark.parametrize("layout", [VIT, AGENT], ids=["vit", "agent"])
def test_every_rule_of_a_table_is_used(layout):
    weights = Official()
    with torch.no_grad():
        for prefix, other in (("models.vit.", "models.cnn."), ("", "other.")):
            vit(weights, images(32), width=18, depth=1, heads=9, prefix=prefix)
            agent(weights, images(32), width=18, depth=1, heads=9, down=(), prefix=other)
        agent(weights, images(32), width=18, depth=1, heads=9, down=(), stem="base")
        agent(weights, images(32), width=18, depth=1, heads=9, down=())
    names = [*weights, "transformer.layers.0.attention.softmax.alpha"]
    used = {next((rule for rule in layout.renames if re.match(rule[0], name)), None) for name in names}
    assert used - {None} == set(layout.renames)
