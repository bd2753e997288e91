"""Sharpness-aware minimisation, against its formula and values of released code."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vitutor_core.train.method import StepOutput
from vitutor_core.train.sam import SharpnessAware


@pytest.fixture
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    images, targets = torch.randn(7, 5, dtype=torch.float64), torch.randint(3, (7,))

    def forward() -> StepOutput:
        return StepOutput(F.cross_entropy(model(images), targets))

    return model, forward


def gradient(model, forward):
    return torch.autograd.grad(forward().loss, list(model.parameters()))


def test_gradient_is_that_of_the_perturbed_weights(problem):
    model, forward = problem
    before = [parameter.detach().clone() for parameter in model.parameters()]
    at_w = gradient(model, forward)
    norm = torch.cat([g.flatten() for g in at_w]).norm()
    with torch.no_grad():
        for parameter, g in zip(model.parameters(), at_w, strict=True):
            parameter.add_(0.1 * g / norm)
    moved = torch.cat([(p - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.1)
    expected = gradient(model, forward)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), before, strict=True):
            parameter.copy_(value)

    output = SharpnessAware(model.parameters(), rho=0.1)(forward, scale=1.0, no_sync=nullcontext)
    assert output.loss.item() == forward().loss.item()
    for parameter, value, g in zip(model.parameters(), before, expected, strict=True):
        assert torch.equal(parameter, value)
        torch.testing.assert_close(parameter.grad, g, rtol=1e-9, atol=1e-14)


def test_vanishing_radius_is_plain_training(problem):
    model, forward = problem
    SharpnessAware(model.parameters(), rho=1e-300)(forward, scale=0.5, no_sync=nullcontext)
    for parameter, g in zip(model.parameters(), gradient(model, forward), strict=True):
        assert torch.equal(parameter.grad, g / 2)


def test_micro_batches_add_up(problem):
    model, forward = problem
    rule = SharpnessAware(model.parameters(), rho=0.1)
    rule(forward, scale=1.0, no_sync=nullcontext)
    once = [parameter.grad.clone() for parameter in model.parameters()]
    rule(forward, scale=1.0, no_sync=nullcontext)
    for parameter, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * g, rtol=1e-9, atol=1e-14)


def test_only_the_second_pass_is_averaged_over_processes(problem):
    model, forward = problem
    log = []

    @contextmanager
    def no_sync():
        log.append("off")
        yield
        log.append("on")

    def noted():
        log.append("forward")
        return forward()

    SharpnessAware(model.parameters(), rho=0.1)(noted, scale=1.0, no_sync=no_sync)
    assert log == ["off", "forward", "on", "forward"]


def test_weights_survive_a_failing_second_pass(problem):
    model, forward = problem
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calls = 0

    def failing():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("second pass")
        return forward()

    with pytest.raises(RuntimeError, match="second pass"):
        SharpnessAware(model.parameters(), rho=0.1)(failing, scale=1.0, no_sync=nullcontext)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_frozen_and_unused_parameters_are_left_alone(problem):
    model, forward = problem
    frozen, unused = model[0].weight.requires_grad_(False), nn.Parameter(torch.ones(2, dtype=torch.float64))
    values = frozen.clone(), unused.detach().clone()
    SharpnessAware([*model.parameters(), unused], rho=0.1)(forward, scale=1.0, no_sync=nullcontext)
    assert frozen.grad is None
    assert torch.equal(frozen, values[0])
    assert torch.equal(unused, values[1])
