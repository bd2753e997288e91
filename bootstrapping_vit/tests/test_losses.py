"""The terms against their formulas written out, and what each of them reaches."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bootstrapping_vit.losses import feature_loss, mutual_term


def maps(*sizes, width=32, images=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(images, width, *size, dtype=torch.float64, generator=generator) for size in sizes]


def centred_unit(tokens):
    tokens = tokens - tokens.mean(-1, keepdim=True)
    return tokens / tokens.norm(dim=-1, keepdim=True)


def as_tokens(map_):
    return map_.flatten(2).transpose(1, 2)


def test_feature_loss_is_twice_one_minus_the_correlation():
    vit, agent = maps((6, 6), (6, 6))
    correlation = (centred_unit(as_tokens(vit)) * centred_unit(as_tokens(agent))).sum(-1)
    torch.testing.assert_close(feature_loss(vit, agent), 2 * (1 - correlation).mean(), rtol=1e-4, atol=0)
    cosine = F.cosine_similarity(vit, agent, dim=1)
    torch.testing.assert_close(feature_loss(vit, agent, norm="l2"), 2 * (1 - cosine).mean())


def test_feature_loss_is_layer_norm_then_mean_squared_error():
    vit, agent = maps((6, 6), (6, 6))
    normalised = [F.layer_norm(as_tokens(map_), (32,)) for map_ in (vit, agent)]
    torch.testing.assert_close(feature_loss(vit, agent), F.mse_loss(*normalised))


@pytest.mark.parametrize("adapter", ["1d", "2d"])
def test_equal_features_have_no_loss(adapter):
    vit, scale, shift = maps((4, 4), (4, 4), (4, 4))
    same = vit * scale[:, :1].exp() + shift[:, :1]
    assert feature_loss(vit, same, adapter=adapter) < 1e-4  # LayerNorm's eps meets tokens of different scale
    assert feature_loss(vit, vit.clone(), adapter=adapter) == 0
    assert feature_loss(vit, 3 * vit, norm="l2", adapter=adapter) < 1e-25
    opposite = vit.mean(1, keepdim=True) - vit
    assert feature_loss(vit, opposite, adapter=adapter).item() == pytest.approx(4, rel=1e-4)


def test_unrelated_features_have_a_loss_of_two():
    vit, agent = maps((14, 14), (14, 14), width=288)
    assert feature_loss(vit, agent).item() == pytest.approx(2, abs=0.01)


def test_the_agent_is_pooled_over_runs_of_tokens():
    vit, agent = maps((14, 14), (28, 28))
    pooled = agent.flatten(2).reshape(4, 32, 196, 4).mean(-1).view_as(vit)
    torch.testing.assert_close(feature_loss(vit, agent), feature_loss(vit, pooled))
    area = F.interpolate(agent.flatten(2), size=196, mode="area").view_as(vit)
    torch.testing.assert_close(feature_loss(vit, agent), feature_loss(vit, area))


def test_the_vit_is_pooled_where_the_agent_has_fewer_tokens():
    vit, agent = maps((14, 14), (7, 7))
    vit.requires_grad_()
    loss = feature_loss(vit, agent)
    pooled = vit.detach().flatten(2).reshape(4, 32, 49, 4).mean(-1).view_as(agent)
    torch.testing.assert_close(loss.detach(), feature_loss(pooled, agent))
    loss.backward()
    assert vit.grad.flatten(2).abs().sum(1).all()


def test_pooling_comes_before_normalisation():
    vit, agent = maps((2, 2), (4, 4))
    agent[:, :, 0, 0] *= 100  # one token dominates its run, unless each is normalised first
    tokens = centred_unit(agent.flatten(2).reshape(4, 32, 4, 4).mean(-1).transpose(1, 2))
    expected = (centred_unit(as_tokens(vit)) - tokens).square().sum(-1).mean()
    torch.testing.assert_close(feature_loss(vit, agent), expected, rtol=1e-4, atol=0)


def test_two_dimensional_pooling():
    vit, agent = maps((4, 4), (8, 8))
    torch.testing.assert_close(
        feature_loss(vit, agent, adapter="2d"), feature_loss(vit, F.avg_pool2d(agent, 2), adapter="2d")
    )
    torch.testing.assert_close(
        feature_loss(agent, vit, adapter="2d"), feature_loss(F.avg_pool2d(agent, 2), vit, adapter="2d")
    )
    assert feature_loss(vit, agent, adapter="2d") != feature_loss(vit, agent)
    assert feature_loss(vit, vit + agent[..., :4, :4], adapter="2d") == feature_loss(vit, vit + agent[..., :4, :4])


def test_no_gradient_reaches_the_agent():
    vit, agent = (map_.requires_grad_() for map_ in maps((4, 4), (8, 8)))
    feature_loss(vit, agent).backward()
    assert agent.grad is None
    assert vit.grad.abs().sum() > 0


def test_shapes_are_checked():
    vit, agent, other = maps((4, 4), (4, 4), (3, 3))
    with pytest.raises(ValueError, match="16 tokens of the ViT against 9"):
        feature_loss(vit, other)
    with pytest.raises(ValueError, match="batch and width"):
        feature_loss(vit, agent[:, :16])
    with pytest.raises(ValueError, match="batch and width"):
        feature_loss(vit, agent[:1])
    with pytest.raises(ValueError, match="logits of shape"):
        mutual_term(torch.zeros(4, 10), torch.zeros(4, 1), torch.zeros(4).long(), temperature=1.0)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    pair = [torch.randn(5, 7, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2)]
    return *pair, torch.randint(7, (5,), generator=generator)


def test_equal_logits_up_to_a_constant_have_nothing_to_distil(logits):
    z, _, y = logits
    assert mutual_term(z, z.detach() + 3, y, temperature=4.0).distill.abs() < 1e-14


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(logits, temperature):
    z, other, y = logits
    term = mutual_term(z, other, y, temperature=temperature)
    p, q = (x.detach().div(temperature).softmax(1) for x in (other, z))
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(term.distill.detach(), expected)
    (gradient,) = torch.autograd.grad(term.distill, z, retain_graph=True)
    torch.testing.assert_close(gradient, temperature * (q - p) / len(z))
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(term.distill, other)
    assert term.label == F.cross_entropy(z, y)


def test_soft_targets(logits):
    z, other, y = logits
    soft = F.one_hot(y, 7).double()
    hard = mutual_term(z, other, y, temperature=2.0)
    assert mutual_term(z, other, soft, temperature=2.0).label.item() == pytest.approx(hard.label.item())
