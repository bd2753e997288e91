"""Verification targets of the terms: what they must be zero for, which images they touch, and slow references."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dearkd.generation.losses import (
    bn_statistics_loss,
    channel_statistics,
    competition_loss,
    intra_divergence,
    l2_prior,
    total_variation,
)
from dearkd.generation.objective import BatchNormStatistics
from dearkd.tests.generation_samples import ConvTeacher


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_total_variation_is_zero_for_constant_images_and_grows_with_the_root_of_the_batch():
    assert total_variation(torch.full((2, 3, 5, 6), 0.7)) == 0
    images = noise(3, 3, 6, 5)
    assert total_variation(images.repeat(2, 1, 1, 1)) == pytest.approx(2**0.5 * total_variation(images).item())


def test_l2_does_not_grow_with_the_batch():
    images = noise(3, 3, 6, 5)
    assert l2_prior(images.repeat(2, 1, 1, 1)) == pytest.approx(l2_prior(images).item())


def test_bn_term_is_zero_for_matching_statistics():
    features = noise(4, 6, 5, 7).requires_grad_()
    mean, variance = features.detach().mean((0, 2, 3)), features.detach().var((0, 2, 3), correction=0)
    loss = bn_statistics_loss(features, mean, variance)
    assert loss.item() <= 1e-6
    assert torch.autograd.grad(loss, features)[0].isfinite().all()
    assert bn_statistics_loss(features, mean + 0.1, variance) > 0.1
    # With torch's stored, unbiased variance it is nearly, not exactly, zero.
    unbiased = features.detach().var((0, 2, 3))
    assert 0 < bn_statistics_loss(features, mean, unbiased) < 0.1


def test_channel_statistics_and_their_gradient_are_those_of_var_mean():
    features = noise(3, 4, 5, 2).requires_grad_()
    weights = noise(2, 4, seed=1)

    def reference(x):
        variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        return mean, variance

    expected, got = ((torch.stack(f(features)) * weights).sum() for f in (reference, channel_statistics))
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, features)[0] for value in (expected, got)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)
    assert torch.autograd.gradcheck(channel_statistics, features)


def test_hooks_are_gone_afterwards_and_the_first_layer_counts_more():
    teacher, images = ConvTeacher().double().eval(), noise(3, 3, 8, 8)
    totals = {}
    for first in (1.0, 10.0):
        with BatchNormStatistics(teacher, first=first) as statistics:
            teacher(images)
            totals[first] = statistics.take()
    stem = bn_statistics_loss(teacher.conv1(images), teacher.bn1.running_mean, teacher.bn1.running_var)
    assert (totals[10.0] - totals[1.0]).item() == pytest.approx(9 * stem.item())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_competition_is_the_formula():
    student, teacher = 3 * noise(2, 4), 3 * noise(2, 4, seed=1)
    total = 0.0
    for z_s, z_t in zip(student, teacher, strict=True):
        p, q = (z_s / 3).softmax(0), (z_t / 3).softmax(0)
        m = [min(max((a + b).item() / 2, 0.01), 0.99) for a, b in zip(p, q, strict=True)]
        for other in (p, q):
            clamped = [min(max(value.item(), 0.01), 0.99) for value in other]
            total += sum(a * torch.log(torch.tensor(a / b)).item() for a, b in zip(m, clamped, strict=True)) / 2
    assert competition_loss(student, teacher).item() == pytest.approx(1 - total / 2, rel=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 4\) against \(2, 3\)"):
        competition_loss(student, teacher[:, :3])


def slow_intra_divergence(latents, labels, margin):
    """The loops of the sheet: per anchor, minimum and maximum over lists of distances."""
    latents = [row / row.norm() for row in latents]
    easiest, hinges = [], []
    for a, anchor in enumerate(latents):
        positives = [(anchor - other).norm() for b, other in enumerate(latents) if b != a and labels[b] == labels[a]]
        negatives = [(anchor - other).norm() for b, other in enumerate(latents) if labels[b] != labels[a]]
        if positives:
            easiest.append(min(positives))
        if positives and negatives:
            hinges.append(max(max(positives) - min(negatives) + margin, torch.zeros(())))
    mean = lambda values: sum(values) / len(values) if values else torch.zeros(())  # noqa: E731
    return -mean(easiest), mean(hinges)


@pytest.mark.parametrize("labels", [[0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5], [3] * 6, [0, 0, 1, 2, 2, 2]])
def test_intra_divergence_is_the_loop_over_anchors(labels):
    latents = noise(6, 5).abs()
    for margin in (0.0, 0.3, 2.0):
        found = intra_divergence(latents, torch.tensor(labels), margin=margin)
        expected = slow_intra_divergence(latents, labels, margin)
        assert found.loss_ep.item() == pytest.approx(float(expected[0]), abs=1e-12)
        assert found.loss_triplet.item() == pytest.approx(float(expected[1]), abs=1e-12)


def test_the_easiest_positive_is_another_image_of_the_class():
    latents = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [1.0, 0.01]])
    labels = torch.tensor([0, 0, 0, 1])
    distance = torch.cdist(latents[:3], latents[:3], compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.fill_diagonal_(float("inf")).min(dim=1).values.mean()
    found = intra_divergence(latents, labels, normalise=False)
    # The anchor itself, at distance 0, and the nearer image of another class do not count.
    assert found.easiest_positive.item() == pytest.approx(nearest.item())
    assert found.loss_ep == -found.easiest_positive


def test_the_hardest_negative_is_of_another_class():
    latents = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.2, 0.8]])
    found = intra_divergence(latents, torch.tensor([0, 0, 1, 1]), normalise=False)
    others = {0: (2, 3), 1: (2, 3), 2: (0, 1), 3: (0, 1)}
    per_anchor = [min((latents[a] - latents[b]).norm() for b in found_in) for a, found_in in others.items()]
    assert found.hardest_negative.item() == pytest.approx((sum(per_anchor) / 4).item())


@pytest.mark.parametrize("normalise", [True, False])
def test_one_step_pushes_the_mutually_nearest_pair_apart(normalise):
    latents = noise(6, 5).requires_grad_()
    with torch.no_grad():
        latents[1] = latents[0] + 0.05
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    loss = intra_divergence(latents, labels, normalise=normalise).loss_ep
    (gradient,) = torch.autograd.grad(loss, latents)
    after = (latents - 0.1 * gradient).detach()
    f = (lambda x: F.normalize(x, dim=1)) if normalise else (lambda x: x)
    assert (f(after)[0] - f(after)[1]).norm() > (f(latents)[0] - f(latents)[1]).norm()


def test_only_selected_images_get_a_gradient():
    # Class 0: images 0 and 1 are each other's nearest, image 2 is far; nobody's nearest, it still has one itself.
    latents = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 0.0], [0.0, 9.0], [9.0, 9.0]]).requires_grad_()
    labels = torch.tensor([0, 0, 0, 1, 2])
    found = intra_divergence(latents, labels, normalise=False, margin=0.3)
    (gradient,) = torch.autograd.grad(found.loss_ep, latents)
    assert gradient[:3].abs().sum(1).gt(0).all()
    assert gradient[3:].abs().sum() == 0  # classes with one image have no positive


def test_the_triplet_term_respects_the_margin():
    apart = torch.tensor([[1.0, 0.0], [0.999, 0.045], [0.0, 1.0], [0.045, 0.999]]).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1])
    found = intra_divergence(apart, labels, margin=0.3)
    assert found.loss_triplet == 0
    assert torch.autograd.grad(found.loss_triplet, apart)[0].abs().sum() == 0
    assert intra_divergence(apart, labels, margin=1.5).loss_triplet > 0
    # A step on it brings the hardest positive nearer than the hardest negative.
    mixed = noise(4, 3, seed=2).requires_grad_()
    before = intra_divergence(mixed, labels, margin=0.3).loss_triplet
    (gradient,) = torch.autograd.grad(before, mixed)
    assert intra_divergence((mixed - 0.1 * gradient).detach(), labels, margin=0.3).loss_triplet < before


def test_equal_latents_give_no_nan():
    latents = torch.ones(4, 3, requires_grad=True)
    found = intra_divergence(latents, torch.tensor([0, 0, 1, 1]))
    (gradient,) = torch.autograd.grad(found.loss_ep + found.loss_triplet, latents)
    assert gradient.isfinite().all()
    with pytest.raises(ValueError, match=r"expected \(B, D\) and \(B,\)"):
        intra_divergence(latents, torch.tensor([0, 1]))
