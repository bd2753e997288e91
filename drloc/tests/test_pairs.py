"""Pairs, their tokens and their offsets against loops and against probabilities."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
import torch

from drloc.losses import l1_loss, reduce_pairs
from drloc.pairs import Pairs, offsets, pair_tokens, sample_pairs, scale

CPU = torch.device("cpu")


def draw(batch, grid, m, seed=0):
    return sample_pairs(batch, grid, m, device=CPU, generator=torch.Generator().manual_seed(seed))


def every_pair(k):
    """All k^4 ordered pairs of cells, as those of one image."""
    cells = torch.tensor(list(itertools.product(range(k), repeat=4)))
    return Pairs(cells[None, :, [0, 2]], cells[None, :, [1, 3]])


# --- tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(7, 7), (4, 6), (6, 4), (1, 5)])
def test_tokens_equal_a_naive_loop(grid, dtype):
    height, width = grid
    tokens = torch.randn(3, 5, height, width).to(dtype)
    pairs = draw(3, grid, 11)
    expected = torch.empty(3, 11, 10, dtype=dtype)
    for b, n in itertools.product(range(3), range(11)):
        for end in range(2):
            row, column = pairs.rows[b, n, end], pairs.columns[b, n, end]
            expected[b, n, 5 * end : 5 * end + 5] = tokens[b, :, row, column]
    assert torch.equal(pair_tokens(tokens, pairs), expected)


def test_tokens_are_read_row_by_row():
    ramp = torch.arange(24.0).reshape(1, 1, 4, 6)
    pairs = draw(1, (4, 6), 50)
    found = pair_tokens(ramp, pairs)[0]
    assert torch.equal(found, 6.0 * pairs.rows[0] + pairs.columns[0])


def test_gradients_of_tokens_that_are_drawn_twice_add_up():
    grid = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    pairs = draw(2, (2, 2), 20)  # 40 endpoints on 4 cells
    upstream = torch.randn(2, 20, 6, dtype=torch.float64)
    (pair_tokens(grid, pairs) * upstream).sum().backward()
    expected = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    for b, n, end in itertools.product(range(2), range(20), range(2)):
        expected[b, :, pairs.rows[b, n, end], pairs.columns[b, n, end]] += upstream[b, n, 3 * end : 3 * end + 3]
    torch.testing.assert_close(grid.grad, expected)


# --- sampling


def test_sampling_is_keyed_and_leaves_torch_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pairs = draw(4, (7, 7), 64, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = draw(4, (7, 7), 64, seed=3), draw(4, (7, 7), 64, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(pairs, again, strict=True))
    assert not torch.equal(pairs.rows, other.rows)
    # Every image has pairs of its own.
    assert len({tuple(rows.flatten().tolist()) for rows in pairs.rows}) == 4


@pytest.mark.parametrize("grid", [(7, 7), (3, 5)])
def test_endpoints_are_uniform_and_independent(grid):
    height, width = grid
    pairs = draw(1000, grid, 400)
    cells = pairs.rows * width + pairs.columns
    joint = torch.bincount((cells[..., 0] * height * width + cells[..., 1]).flatten()).double()
    assert len(joint) == (height * width) ** 2  # the last one with them: all combinations occur
    expected = cells[..., 0].numel() / len(joint)
    chi_squared = ((joint - expected) ** 2 / expected).sum()
    degrees = len(joint) - 1
    assert abs(chi_squared - degrees) < 4 * (2 * degrees) ** 0.5
    identical = (cells[..., 0] == cells[..., 1]).double().mean()
    assert identical == pytest.approx(1 / (height * width), rel=0.05)


# --- offsets


@pytest.mark.parametrize("k", [2, 7])
def test_distribution_of_offsets(k):
    distances = offsets(every_pair(k))[0]
    for axis in range(2):
        counts = torch.bincount(distances[:, axis])
        probabilities = [Fraction(int(count), k**4) for count in counts]
        assert probabilities == [Fraction(1, k)] + [Fraction(2 * (k - t), k * k) for t in range(1, k)]
        assert sum(t * p for t, p in enumerate(probabilities)) / k == Fraction(k * k - 1, 3 * k * k)
        assert sum(t * t * p for t, p in enumerate(probabilities)) == Fraction(k * k - 1, 6)


@pytest.mark.parametrize("k", [7, 14])
def test_sampled_targets_have_the_mean_of_the_closed_form(k):
    targets = scale((k, k), unit="k", signed=False).targets(offsets(draw(500, (k, k), 400)))
    assert targets.mean().item() == pytest.approx((k * k - 1) / (3 * k * k), rel=0.005)
    assert targets.min() == 0
    assert targets.max() == torch.tensor((k - 1) / k)


def test_symmetries():
    pairs = draw(3, (5, 7), 30)
    distances, signed = offsets(pairs), offsets(pairs, signed=True)
    swapped = Pairs(pairs.rows.flip(-1), pairs.columns.flip(-1))
    assert torch.equal(offsets(swapped), distances)
    assert torch.equal(offsets(swapped, signed=True), -signed)
    flipped = Pairs(4 - pairs.rows, pairs.columns)
    assert torch.equal(offsets(flipped), distances)
    moved = Pairs(pairs.rows + 2, pairs.columns + 3)
    assert torch.equal(offsets(moved, signed=True), signed)
    same = Pairs(pairs.rows[..., [0, 0]], pairs.columns[..., [1, 1]])
    assert not offsets(same).any()


@pytest.mark.parametrize("signed", [False, True])
def test_units(signed):
    cells = offsets(every_pair(4), signed=signed)
    by_unit = {unit: scale((4, 4), unit=unit, signed=signed).targets(cells) for unit in ("k", "k-1", "cells")}
    assert torch.equal(by_unit["k"], cells / 4)
    low, high = (0, 6) if signed else (0, 3)
    assert (by_unit["cells"].min(), by_unit["cells"].max()) == (low, high)
    assert (by_unit["k-1"].min(), by_unit["k-1"].max()) == (0, 1)
    wide = scale((2, 4), unit="k", signed=False)
    assert torch.equal(wide.targets(torch.tensor([[[1, 1]]])), torch.tensor([[[0.5, 0.25]]]))
    assert torch.equal(wide.in_cells(torch.tensor([[[0.5, 0.25]]])), torch.tensor([[[1.0, 1.0]]]))


# --- the Monte-Carlo loss


def test_the_loss_is_an_unbiased_estimate_over_all_pairs():
    torch.manual_seed(0)
    grid = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    weight = torch.randn(6, 2, dtype=torch.float64)

    def errors(pairs, tokens):
        targets = scale((7, 7), unit="k", signed=False).targets(offsets(pairs))
        return (pair_tokens(tokens, pairs) @ weight - targets).abs()

    everything = errors(every_pair(7), grid)
    assert everything.shape == (1, 2401, 2)
    exact = reduce_pairs(everything, "mean").item()
    deviations = []
    for m in (16, 64):
        # 20,000 images that are all the same, so each gives an estimate of its own.
        each = errors(draw(20_000, (7, 7), m), grid.expand(20_000, -1, -1, -1)).sum(-1).mean(1)
        deviations.append(each.std().item())
        assert each.mean().item() == pytest.approx(exact, abs=4 * deviations[-1] / 20_000**0.5)
    assert deviations[0] / deviations[1] == pytest.approx(2, rel=0.05)


def test_the_vectorised_loss_equals_a_naive_loop():
    torch.manual_seed(0)
    grid, weight = torch.randn(4, 3, 5, 6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    pairs, total = draw(4, (5, 6), 9), 0.0
    for b in range(4):
        for n in range(9):
            (i, p), (j, h) = pairs.rows[b, n].tolist(), pairs.columns[b, n].tolist()
            d_u, d_v = torch.cat([grid[b, :, i, j], grid[b, :, p, h]]) @ weight
            total += (abs(abs(i - p) / 5 - d_u) + abs(abs(j - h) / 6 - d_v)) / 9
    targets = scale((5, 6), unit="k", signed=False).targets(offsets(pairs)).double()
    predicted = pair_tokens(grid, pairs) @ weight
    exact = torch.tensor(
        [
            [abs(r[0] - r[1]) / 5, abs(c[0] - c[1]) / 6]
            for r, c in zip(pairs.rows.flatten(0, 1).tolist(), pairs.columns.flatten(0, 1).tolist(), strict=True)
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(targets.flatten(0, 1), exact, rtol=1e-6, atol=0)
    exact = exact.view(4, 9, 2)
    torch.testing.assert_close(l1_loss(predicted, exact, reduction="sum"), total)
    torch.testing.assert_close(l1_loss(predicted, exact), total / 4)
    torch.testing.assert_close(l1_loss(predicted, exact, reduction="mean_axes"), total / 8)
