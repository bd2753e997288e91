from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from dearkd.models.bias import (
    LEFTOVER_ALPHA,
    RPE_INITS,
    convit_init,
    disc_init,
    int_init,
    random_init,
    rect_init,
    relative_bias,
)

GRIDS = [(1, 1), (3, 5), (4, 2), (14, 14)]


def offsets(grid: tuple[int, int]) -> torch.Tensor:
    """All key-minus-query offsets, (l, l, 2), the slow way."""
    points = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    return torch.tensor([[(k[0] - q[0], k[1] - q[1]) for k in points] for q in points], dtype=torch.float64)


def parameters(heads: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(heads, dtype=torch.float64, generator=generator),
        2 * torch.randn(heads, 2, dtype=torch.float64, generator=generator),
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_inner_product_of_eq_2(grid):
    alpha, delta = parameters()
    d = offsets(grid)
    r = torch.cat([d.square().sum(-1, keepdim=True), d], dim=-1)
    v = -alpha[:, None] * torch.cat([torch.ones(3, 1), -2 * delta], dim=1)
    expected = torch.einsum("hc,ijc->hij", v, r)
    torch.testing.assert_close(relative_bias(alpha, delta, grid, 0)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", GRIDS)
def test_equals_the_completed_square(grid):
    alpha, delta = parameters()
    distance = (offsets(grid)[None] - delta[:, None, None]).square().sum(-1)
    expected = alpha[:, None, None] * (delta.square().sum(1)[:, None, None] - distance)
    torch.testing.assert_close(relative_bias(alpha, delta, grid, 0)[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_prefix", [0, 1, 2])
def test_prefix_rows_and_columns_are_exactly_zero(num_prefix):
    alpha, delta = (value.requires_grad_() for value in parameters())
    bias = relative_bias(alpha, delta, (3, 4), num_prefix)
    assert bias.shape == (1, 3, num_prefix + 12, num_prefix + 12)
    assert (bias[:, :, :num_prefix] == 0).all()
    assert (bias[..., :num_prefix] == 0).all()
    assert torch.equal(bias[:, :, num_prefix:, num_prefix:], relative_bias(alpha, delta, (3, 4), 0))
    (bias[:, :, :num_prefix].sum() + bias[..., :num_prefix].sum()).backward()
    assert (alpha.grad == 0).all()
    assert (delta.grad == 0).all()


def test_gradients():
    alpha, delta = (value.requires_grad_() for value in parameters())
    assert torch.autograd.gradcheck(lambda a, d: relative_bias(a, d, (2, 3), 1), (alpha, delta))


def test_is_computed_in_float32_whatever_the_context():
    alpha, delta = (value.float() for value in parameters())
    expected = relative_bias(alpha, delta, (14, 14), 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(relative_bias(alpha, delta, (14, 14), 1), expected)
    assert expected.dtype == torch.float32
    half = relative_bias(alpha.bfloat16(), delta.bfloat16(), (14, 14), 1)
    assert half.dtype == torch.float32
    assert torch.equal(half, relative_bias(alpha.bfloat16().float(), delta.bfloat16().float(), (14, 14), 1))


def test_largest_value_on_the_papers_grid():
    alpha, delta = parameters()
    bound = alpha.abs() * (338 + 26 * delta.abs().sum(1))
    assert (relative_bias(alpha, delta, (14, 14), 0)[0].abs().amax((1, 2)) <= bound).all()
    corner = relative_bias(alpha, -delta.abs(), (14, 14), 0)[0].abs().amax((1, 2))
    torch.testing.assert_close(corner, bound, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("delta", "weight"),
    [((0, 0), 0.241), ((0.5, -0.5), 0.162), ((1, 1), 0.041), ((0.5, 1.5), 0.025), ((1.5, -1.5), 0.004)],
)
def test_constant_term_decides_what_the_class_token_gets(delta, weight):
    bias = relative_bias(torch.ones(1), torch.tensor([delta], dtype=torch.float32), (14, 14), 1)
    interior = 1 + 7 * 14 + 7
    assert bias[0, 0, interior].softmax(-1)[0].item() == pytest.approx(weight, abs=5e-4)


def test_half_integer_offsets_spread_over_four_neighbours():
    delta = torch.tensor([[0.5, -0.5]])
    attention = relative_bias(torch.tensor([200.0]), delta, (5, 5), 0)[0, 0].softmax(-1)
    row = torch.zeros(5, 5)
    row[2:4, 1:3] = 0.25
    torch.testing.assert_close(attention[2 * 5 + 2], row.flatten(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RPE_INITS)
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6, 9, 12, 16])
def test_every_initialisation_fits_every_number_of_heads(name, heads):
    alpha, delta = RPE_INITS[name](heads)
    assert alpha.shape == (heads,)
    assert delta.shape == (heads, 2)
    assert alpha.dtype == delta.dtype == torch.float32
    assert (alpha > 0).all()
    if name in {"disc", "rect", "int"}:
        assert len({tuple(point) for point in delta.tolist()}) == heads


def points(delta: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(point) for point in delta.tolist()}


def product(rows: list[float], columns: list[float]) -> set[tuple[float, ...]]:
    return {(row, column) for row in rows for column in columns}


def test_disc_initialisation():
    halves = [-1.5, -0.5, 0.5, 1.5]
    assert points(disc_init(9)[1]) == product([-1, 0, 1], [-1, 0, 1])
    assert points(disc_init(16)[1]) == product(halves, halves)
    twelve = points(disc_init(12)[1])
    assert twelve == product(halves, halves) - product([-1.5, 1.5], [-1.5, 1.5])
    assert twelve == {(-row, column) for row, column in twelve} == {(column, row) for row, column in twelve}
    assert points(disc_init(6)[1]) > {(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)}
    assert torch.equal(disc_init(12)[0], torch.ones(12))


def test_rectangular_and_integer_initialisations():
    assert points(rect_init(12)[1]) == product([-1, 0, 1], [-1.5, -0.5, 0.5, 1.5])
    assert points(int_init(12)[1]) == product([-1, 0, 1], [-1, 0, 1, 2])
    assert points(int_init(16)[1]) == product([-1, 0, 1, 2], [-1, 0, 1, 2])
    assert points(int_init(9)[1]) == product([-1, 0, 1], [-1, 0, 1])


def test_convit_initialisation_leaves_three_of_twelve_heads_without_a_tap():
    alpha, delta = convit_init(12)
    assert points(delta[:9]) == product([-1, 0, 1], [-1, 0, 1])
    assert torch.equal(alpha, torch.tensor([1.0] * 9 + [LEFTOVER_ALPHA] * 3))
    assert (delta[9:] == 0).all()


def test_random_initialisation_has_the_moments_of_its_source():
    torch.manual_seed(0)
    alpha, delta = random_init(20_000)
    assert alpha.mean().item() == pytest.approx(0.5, abs=1e-3)
    assert alpha.std().item() == pytest.approx(0.01, rel=0.05)
    assert delta.mean().item() == pytest.approx(0, abs=0.05)
    assert delta.std().item() == pytest.approx(2, rel=0.02)
    torch.manual_seed(0)
    assert torch.equal(random_init(20_000)[1], delta)


def test_inverse_variance_is_twice_alpha():
    """One axis of the attention of an interior query is a Gaussian of variance 1 / (2 alpha)."""
    alpha = torch.tensor([0.1], dtype=torch.float64)
    attention = relative_bias(alpha, torch.zeros(1, 2, dtype=torch.float64), (1, 41), 0)[0, 0, 20].softmax(-1)
    variance = (attention * (torch.arange(41) - 20).square()).sum().item()
    assert variance == pytest.approx(1 / 0.2, rel=1e-6)
    assert attention[20].item() == pytest.approx(math.sqrt(0.1 / math.pi), rel=1e-6)
    assert F.relu(attention).sum().item() == pytest.approx(1)
