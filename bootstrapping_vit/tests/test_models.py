"""Sizes, shapes and initialisations of ViTs and agents; CONV against its definition; what a Shared pair shares."""

from __future__ import annotations

import copy
import sys

import pytest
import timm
import torch
from timm.layers import Attention
from torch import nn
from torch.nn import functional as F

from bootstrapping_vit.models.agent import AgentCNN
from bootstrapping_vit.models.conv import Conv, head_window, shared_conv, tapped_conv
from bootstrapping_vit.models.pair import share_weights, shared_tensors
from bootstrapping_vit.models.sparse import EntmaxAttention
from bootstrapping_vit.models.vit import build_vit
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.complexity import complexity
from vitutor_core.models.intermediates import read_intermediates

S, B = "bootstrapping_vit_s_patch16_224", "bootstrapping_vit_b_patch16_224"
AGENT_S, AGENT_B = "bootstrapping_agent_s", "bootstrapping_agent_b"
BASE = {"stem": "base"}


def on_meta(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "kwargs", "counts"),
    [
        (S, {}, (6_276_394, 6_302_404, 6_562_504)),
        (B, {}, (21_669_514, 21_704_164, 22_050_664)),
        (AGENT_S, {}, (8_656_746, 8_682_756, 8_942_856)),
        (AGENT_S, BASE, (8_702_506, 8_728_516, 8_988_616)),
        (AGENT_B, {}, (25_054_410, 25_089_060, 25_435_560)),
        (AGENT_B, BASE, (25_118_602, 25_153_252, 25_499_752)),
        (S, {"attention": "entmax"}, (6_276_400, 6_302_410, 6_562_510)),
    ],
)
def test_parameters_of_table_1(name, kwargs, counts):
    assert tuple(count(on_meta(name, num_classes=k, **kwargs)) for k in (10, 100, 1000)) == counts


@pytest.mark.parametrize(
    ("name", "kwargs", "gmacs"),
    [
        (S, {}, 1.354),
        (B, {}, 4.599),
        (AGENT_S, {}, 3.357),
        (AGENT_S, {"down": (0, 1)}, 1.906),
        (AGENT_S, BASE, 1.702),
        (AGENT_B, {}, 7.878),
        (AGENT_B, BASE, 4.913),
    ],
)
def test_multiplications_of_table_1(name, kwargs, gmacs):
    found = complexity(on_meta(name, num_classes=10, **kwargs), 224)["flops"]
    assert found / 2e9 == pytest.approx(gmacs, abs=5e-4)


SIDES = {
    "S as printed": (AGENT_S, {}, [28, 28, 14, 14, 14, 7]),
    "S as released": (AGENT_S, {"down": (0, 1)}, [28, 14, 7, 7, 7, 7]),
    "S drawn": (AGENT_S, {"tap_after_down": True}, [28, 14, 14, 14, 7, 7]),
    "B": (AGENT_B, {}, [28] * 3 + [14] * 6 + [7] * 3),
    "base": (AGENT_S, BASE, [14] * 6),
}


@pytest.mark.parametrize("name", SIDES)
def test_sides_of_the_layers(name):
    model, kwargs, sides = SIDES[name]
    agent = on_meta(model, num_classes=10, **kwargs)
    taps = read_intermediates(agent, torch.empty(2, 3, 224, 224, device="meta"), features=range(len(sides)))
    assert [tuple(map_.shape) for map_ in taps.features] == [(2, agent.embed_dim, side, side) for side in sides]
    if not agent.tap_after_down:
        assert [224 // info["reduction"] for info in agent.feature_info] == sides
    assert taps.logits.shape == (2, 10)


@pytest.mark.parametrize(("patch", "side"), [(16, 4), (8, 8), (4, 16), (2, 32)])
def test_the_res_stem_starts_at_twice_the_grid_of_the_vit(patch, side):
    agent = on_meta(AGENT_S, patch_size=patch)
    assert agent.stem(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 288, side, side)


def test_taps_are_those_of_plain_forward():
    agent = AgentCNN(patch_size=4, embed_dim=9, depth=3, down=(0,), stem_width=4, num_classes=5).eval()
    images = torch.randn(2, 3, 16, 16)
    taps = read_intermediates(agent, images, features=["blocks.2", 0])
    assert torch.equal(taps.logits, agent(images))
    x = agent.blocks[0](agent.stem(images))
    assert torch.equal(taps.features[1], x)
    assert torch.equal(taps.features[0], agent.blocks[2](agent.blocks[1](F.avg_pool2d(x, 2))))


def test_impossible_agents_are_refused():
    for kwargs in ({"down": (5,)}, {"patch_size": 5}, {"stem": "conv"}, {"init": "xavier"}):
        with pytest.raises(ValueError, match=r"down|patch_size|stem"):
            AgentCNN(**kwargs)
    for kwargs in ({"init": "xavier"}, {"attention": "linear"}):
        with pytest.raises(ValueError, match="standard or official"):
            build_vit(**kwargs)


def dense_phi(heads, height, width):
    """Phi of eq. 4, (H, n, n), by its definition: row c has a 1 at the position that tap h of c reads."""
    side = next(k for k in range(1, 99) if k * k >= heads)
    phi = torch.zeros(heads, height * width, height * width, dtype=torch.float64)
    for head in range(heads):
        down, right = head // side - (side - 1) // 2, head % side - (side - 1) // 2
        for row in range(height):
            for column in range(width):
                if 0 <= row + down < height and 0 <= column + right < width:
                    phi[head, row * width + column, (row + down) * width + column + right] = 1
    return phi


HEADS = [1, 2, 4, 5, 6, 7, 9, 12, 17]


@pytest.mark.parametrize("heads", HEADS)
def test_conv_is_the_sum_over_taps(heads):
    dim, height, width = heads, 5, 4
    conv = Conv(dim, heads).double()
    nn.init.normal_(conv.bias)
    x = torch.randn(2, dim, height, width, dtype=torch.float64)
    phi = dense_phi(heads, height, width)
    expected = torch.einsum("hcn,bin,oih->boc", phi, x.flatten(2), conv.weight) + conv.bias[:, None]
    torch.testing.assert_close(conv(x).flatten(2), expected)


def test_phi_has_at_most_one_entry_in_a_row():
    phi = dense_phi(9, 4, 5)
    assert phi.sum(2).max() == 1
    assert not phi[0, :5].any()  # the tap above the first row of the map


def test_six_taps_are_a_kernel_without_its_bottom_row():
    conv = Conv(3, 6).double()
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    kernel = torch.cat([conv.weight.view(3, 3, 2, 3), torch.zeros(3, 3, 1, 3)], dim=2)
    torch.testing.assert_close(conv(x), F.conv2d(x, kernel, conv.bias, padding=1))
    assert head_window(6).bottom == 0


def attention_weights(dim):
    return [torch.randn(dim, dim, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def assembled(value, out, heads):
    """The weights of CONV per tap, (d, d, H), that eq. 5 builds from W^V and W^O."""
    parts = zip(out.chunk(heads, dim=1), value.chunk(heads, dim=0), strict=True)
    return torch.stack([o @ v for o, v in parts], dim=2)


@pytest.mark.parametrize("heads", HEADS)
def test_shared_conv_is_the_assembled_kernel(heads):
    value, out = attention_weights(2 * heads)
    bias, x = torch.randn(2 * heads, dtype=torch.float64), torch.randn(2, 2 * heads, 6, 5, dtype=torch.float64)
    fast, slow = shared_conv(x, value, out, bias, heads), tapped_conv(x, assembled(value, out, heads), bias)
    torch.testing.assert_close(fast, slow)
    direction = torch.randn_like(fast)
    for a, b in zip(*(torch.autograd.grad(y, (value, out), direction) for y in (fast, slow)), strict=True):
        torch.testing.assert_close(a, b)


def test_shared_conv_is_attention_with_phi_for_its_probabilities(monkeypatch):
    attention = Attention(18, num_heads=9, qkv_bias=True).double()
    nn.init.zeros_(attention.qkv.bias)
    attention.fused_attn = False
    x = torch.randn(2, 18, 4, 5, dtype=torch.float64)
    phi = dense_phi(9, 4, 5)
    monkeypatch.setattr(attention, "attn_drop", nn.Identity())
    monkeypatch.setattr(torch.Tensor, "softmax", lambda _, dim: phi)
    expected = attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    weights = (attention.qkv.weight[36:], attention.proj.weight, attention.proj.bias)
    torch.testing.assert_close(shared_conv(x, *weights, 9), expected)


@pytest.fixture
def models():
    """A small ViT and agent, and the same two as a Shared pair."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 18, "depth": 2, "num_heads": 9, "num_classes": 5, "patch_size": 4}
    vit = build_vit(img_size=16, proj_drop_rate=0.2, **sizes)
    agent = AgentCNN(down=(0,), stem_width=4, **sizes)
    pair = copy.deepcopy((vit, agent))
    share_weights(pair[1], pair[0])
    return (vit, agent), pair


def test_shared_counts():
    for vit_name, agent_name, shared, private, total in (
        (S, AGENT_S, 4_987_008, 186_090, 6_462_484),
        (B, AGENT_B, 17_722_368, 254_154, 21_923_668),
    ):
        vit, agent = on_meta(vit_name, num_classes=10), on_meta(agent_name, num_classes=10)
        share_weights(agent, vit)
        assert sum(tensor.parameter[tensor.start :].numel() for tensor in shared_tensors(vit)) == shared
        assert count(agent) == private
        assert count(nn.ModuleList([vit, agent])) == total
        assert not {id(p) for p in vit.parameters()} & {id(p) for p in agent.parameters()}


def test_the_shared_agent_follows_the_vit(models):
    images = torch.randn(2, 3, 16, 16)
    (vit, agent), (shared_vit, shared_agent) = models
    used = {"qkv.weight": slice(36, 54), "proj.weight": slice(None), "proj.bias": slice(None)}
    unused = {"qkv.weight": slice(0, 36), "qkv.bias": slice(None)}
    for owner, follower, follows in ((vit, agent, False), (shared_vit, shared_agent, True)):
        follower.eval()
        for names, matters in ((used, follows), (unused, False)):
            for name, rows in names.items():
                before = follower(images)
                with torch.no_grad():
                    owner.blocks[0].attn.get_parameter(name)[rows] += 0.5
                assert torch.equal(follower(images), before) != matters, name
        for name in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            before = follower(images)
            with torch.no_grad():
                owner.blocks[1].mlp.get_parameter(name)[0] += 0.5
            assert torch.equal(follower(images), before) != follows, name


def test_the_shared_agent_has_the_dropout_of_the_vit(models):
    (_, agent), (_, shared) = models
    assert (agent.blocks[0].drop.p, agent.blocks[0].mlp.drop1.p) == (0.0, 0.1)
    assert (shared.blocks[0].drop.p, shared.blocks[0].mlp.drop.p) == (0.2, 0.2)


def test_pairs_of_different_shape_are_refused():
    vit = build_vit(img_size=16, patch_size=4, embed_dim=18, depth=2, num_heads=9)
    for other in ({"embed_dim": 9}, {"depth": 3}, {"num_heads": 6}):
        agent = AgentCNN(**{"patch_size": 4, "embed_dim": 18, "depth": 2, "num_heads": 9} | other)
        with pytest.raises(ValueError, match="differ"):
            share_weights(agent, vit)


def spread(values):
    return values.std().item()


def test_official_initialisation():
    torch.manual_seed(0)
    vit = timm.create_model(S, num_classes=10, init="official").eval()
    assert spread(vit.patch_embed.proj.weight) == pytest.approx(1, rel=0.01)
    assert not vit.patch_embed.proj.bias.any()
    for block in vit.blocks:
        assert spread(block.mlp.fc1.bias) == pytest.approx(1, rel=0.1)
        assert spread(block.mlp.fc2.bias) == pytest.approx(1, rel=0.2)
    with torch.no_grad():
        features = read_intermediates(vit, torch.randn(2, 3, 224, 224), features=range(6)).features
    assert all(27 < spread(map_) < 29 for map_ in features)
    agent = timm.create_model(AGENT_S, num_classes=10, init="official")
    assert spread(agent.stem[4].bias) == pytest.approx(1, rel=0.2)
    with torch.no_grad():
        features = read_intermediates(agent, torch.randn(2, 3, 224, 224), features=range(6)).features
    assert all(2 < spread(map_) < 4 for map_ in features)
    assert spread(timm.create_model(AGENT_S, init="official", **BASE).stem.weight) == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("name", [S, AGENT_S])
def test_standard_initialisation(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval()
    biases = {key: value for key, value in model.named_parameters() if key.endswith("bias") and "head" not in key}
    assert not any(value.any() for value in biases.values())
    with torch.no_grad():
        features = read_intermediates(model, torch.randn(2, 3, 224, 224), features=range(6)).features
    assert all(0.1 < spread(map_) < 3 for map_ in features)


def test_both_initialisations_agree_elsewhere():
    torch.manual_seed(0)
    vit = timm.create_model(S, num_classes=10)
    assert spread(vit.pos_embed) == pytest.approx(0.02, rel=0.05)
    assert spread(vit.cls_token) == pytest.approx(0.02, rel=0.2)
    bound = (6 / (4 * 288)) ** 0.5  # W^QKV is one matrix
    assert vit.blocks[0].attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    agent = timm.create_model(AGENT_B)
    assert agent.blocks[0].conv.weight.abs().max().item() == pytest.approx((6 / (2 * 6 * 384)) ** 0.5, rel=1e-3)


def test_entmax_attention_between_softmax_and_sparsemax():
    torch.manual_seed(0)
    plain, sparse = Attention(12, num_heads=3, qkv_bias=True), EntmaxAttention(12, num_heads=3, qkv_bias=True)
    sparse.load_state_dict(plain.state_dict() | {"alpha": torch.tensor(1.0001)})
    x = 3 * torch.randn(2, 7, 12)
    torch.testing.assert_close(sparse(x), plain(x), rtol=0, atol=5e-3)
    model = build_vit(embed_dim=12, depth=2, num_heads=3, img_size=16, patch_size=4, attention="entmax", num_classes=2)
    (probabilities,) = read_intermediates(model, 5 * torch.randn(1, 3, 16, 16), attentions=[0]).attentions
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 3, 17))
    assert (probabilities == 0).any()
    assert model.blocks[0].attn.alpha.item() == 1.5


def test_entmax_gradients():
    from entmax import entmax_bisect

    scores = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([1.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, a: entmax_bisect(s, a, dim=-1), (scores, alpha), atol=1e-5)


def test_missing_entmax_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "entmax", None)
    with pytest.raises(ConfigError, match="pip install entmax"):
        build_vit(embed_dim=12, depth=1, num_heads=3, img_size=16, patch_size=4, attention="entmax")
