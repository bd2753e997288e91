"""The terms, the objective and the schedule of the generation against values of released code."""

from __future__ import annotations

import pytest
import torch

from dearkd.generation.batch import clamp_pixels, learning_rate
from dearkd.generation.config import PhaseConfig, TermsConfig
from dearkd.generation.losses import (
    bn_statistics_loss,
    channel_statistics,
    competition_loss,
    l2_prior,
    total_variation,
)
from dearkd.generation.objective import BatchNormStatistics, objective, view_of
from dearkd.tests.generation_samples import ConvTeacher, PoolStudent, load_case, with_weights

PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 5e-5)]


def assert_agrees(got, expected, tolerance):
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    scale = expected.abs().max()
    assert (got - expected).abs().max() <= (tolerance * scale if scale > 0 else tolerance)


def value_and_gradient(loss, x):
    value = loss(x.requires_grad_())
    return value.detach(), torch.autograd.grad(value, x)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_total_variation(dtype, tolerance):
    case = load_case("total_variation", dtype)
    value, gradient = value_and_gradient(total_variation, case["input.x"])
    assert_agrees(value, case["expected.tv"], tolerance)
    assert_agrees(gradient, case["grad.x"], tolerance)
    twice = total_variation(case["input.x"].detach().repeat(2, 1, 1, 1))
    assert_agrees(twice, case["expected.tv_batch_twice"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_l2_prior(dtype, tolerance):
    case = load_case("l2_prior", dtype)
    value, gradient = value_and_gradient(l2_prior, case["input.x"])
    assert_agrees(value, case["expected.l2"], tolerance)
    assert_agrees(gradient, case["grad.x"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_bn_statistics_of_a_layer(dtype, tolerance):
    case = load_case("bn_statistics_layer", dtype)
    running = case["weight.running_mean"], case["weight.running_var"]
    value, gradient = value_and_gradient(lambda x: bn_statistics_loss(x, *running), case["input.x"])
    assert_agrees(value, case["expected.term"], tolerance)
    assert_agrees(gradient, case["grad.x"], tolerance)
    mean, variance = channel_statistics(case["input.x"].detach())
    assert_agrees(mean, case["expected.batch_mean"], tolerance)
    assert_agrees(variance, case["expected.batch_var"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_bn_statistics_of_a_network(dtype, tolerance):
    case = load_case("bn_statistics_network", dtype)
    teacher = with_weights(ConvTeacher(), case, "teacher", dtype)
    with BatchNormStatistics(teacher, first=10.0) as statistics:

        def r_bn(x):
            teacher(x)
            return statistics.take()

        value, gradient = value_and_gradient(r_bn, case["input.x"])
    assert_agrees(value, case["expected.r_bn"], tolerance)
    assert_agrees(gradient, case["grad.x"], tolerance)
    first, *others = case["expected.terms"]
    assert value.item() == pytest.approx(float(10 * first + sum(others)), rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", ["js_competition", "js_competition_sharp", "js_competition_saturated"])
def test_competition(name, dtype, tolerance):
    case = load_case(name, dtype)
    student, teacher = case["input.z_student"].requires_grad_(), case["input.z_teacher"].requires_grad_()
    loss = competition_loss(student, teacher, temperature=3.0)
    gradients = torch.autograd.grad(loss, [student, teacher])
    assert_agrees(loss.detach(), case["expected.loss"], tolerance)
    assert_agrees(1 - loss.detach(), case["expected.J"], tolerance)
    assert_agrees(gradients[0], case["grad.z_student"], tolerance)
    assert_agrees(gradients[1], case["grad.z_teacher"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("phase", "view"),
    [(1, {"shrink": 2, "roll": (2, -3), "mirror": True}), (2, {"shrink": 1, "roll": (-5, 4), "mirror": False})],
)
def test_the_whole_objective(phase, view, dtype, tolerance):
    case = load_case(f"generation_objective_phase{phase}", dtype)
    teacher = with_weights(ConvTeacher(), case, "teacher", dtype)
    student = with_weights(PoolStudent(), case, "student", dtype)
    terms = TermsConfig(competition=0.2)
    images = case["input.x"].requires_grad_()
    with BatchNormStatistics(teacher, first=terms.first_bn) as statistics:
        outcome = objective(teacher, statistics, view_of(images, **view), case["input.y"], terms, student)
    gradient = torch.autograd.grad(outcome.loss, images)[0]
    assert_agrees(outcome.loss.detach(), case["expected.loss"], tolerance)
    assert_agrees(gradient, case["grad.x"], tolerance)
    names = {"label": "ce", "total_variation": "tv", "l2": "l2", "bn": "r_bn", "competition": "competition"}
    assert outcome.parts.keys() == names.keys()
    for ours, theirs in names.items():
        assert_agrees(outcome.parts[ours].detach(), case[f"expected.{theirs}"], tolerance)


def test_learning_rate():
    case = load_case("generation_lr", torch.float64)
    phase = PhaseConfig(iterations=2000, lr=0.5, warmup=100)
    found = [learning_rate(phase, iteration) for iteration in case["input.iteration"].tolist()]
    assert_agrees(torch.tensor(found, dtype=torch.float64), case["expected.lr"], 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_pixel_clamp(dtype, tolerance):
    case = load_case("pixel_clamp", dtype)
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=dtype).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=dtype).view(1, 3, 1, 1)
    images = case["input.x"].clone()
    clamp_pixels(images, mean, std)
    assert_agrees(images, case["expected.clamped"], tolerance)
    assert_agrees(images * std + mean, case["expected.denormalised"], tolerance)
