"""Values of the losses that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from drloc.losses import ce_loss, l1_loss, reduce_pairs, reg_loss
from drloc.pairs import Pairs, offsets, pair_tokens, scale

K = 7


@pytest.fixture(scope="module")
def pairs():
    """All pairs of a 7 x 7 grid, as those of one image: means over them are expectations."""
    cells = torch.cartesian_prod(*[torch.arange(K)] * 4)
    return Pairs(cells[None, :, [0, 2]], cells[None, :, [1, 3]])


def targets_of(pairs, unit="k", *, signed=False, k=K):
    return scale((k, k), unit=unit, signed=signed).targets(offsets(pairs, signed=signed)).double()


@pytest.mark.parametrize(
    ("unit", "zero", "constant"), [("cells", 16 / 7, 66 / 49), ("k", 16 / 49, 66 / 343), ("k-1", 8 / 21, 11 / 49)]
)
def test_zero_and_best_constant_predictions(pairs, unit, zero, constant):
    targets = targets_of(pairs, unit)
    assert l1_loss(torch.zeros_like(targets), targets, reduction="mean_axes").item() == pytest.approx(zero)
    divisor = scale((K, K), unit=unit, signed=False).divisor[0]
    losses = [
        l1_loss(torch.full_like(targets, cells / divisor), targets, reduction="mean_axes").item() for cells in range(K)
    ]
    assert min(losses) == losses[2] == pytest.approx(constant)


def test_signed_targets_of_the_released_code(pairs):
    targets = targets_of(pairs, "cells", signed=True)
    assert l1_loss(torch.zeros_like(targets), targets, reduction="mean_axes").item() == pytest.approx(6)
    assert l1_loss(torch.full_like(targets, 6), targets, reduction="mean_axes").item() == pytest.approx(16 / 7)


def test_fourteen_by_fourteen():
    distances = (torch.arange(14)[:, None] - torch.arange(14)).abs().double()
    assert distances.mean().item() == pytest.approx(4.642857, rel=1e-6)
    assert (distances - 4).abs().mean().item() == pytest.approx(2.72449, rel=1e-5)


@pytest.mark.parametrize("unit", ["k", "k-1", "cells"])
@pytest.mark.parametrize("signed", [False, True])
def test_an_oracle_has_no_loss(pairs, unit, signed):
    targets = targets_of(pairs, unit, signed=signed)
    assert l1_loss(targets, targets) == 0


def test_tokens_that_know_their_place_have_no_loss(pairs):
    place = torch.stack(torch.meshgrid(torch.arange(K), torch.arange(K), indexing="ij")).double()[None]
    first, second = pair_tokens(place, pairs).chunk(2, dim=-1)
    assert l1_loss((first - second).abs(), targets_of(pairs, "cells")) == 0


def test_the_paper_and_the_released_code(pairs):
    predicted = torch.randn(1, K**4, 2, dtype=torch.float64)
    released = l1_loss(predicted, targets_of(pairs, "cells"), reduction="mean_axes")
    paper = l1_loss(predicted / K, targets_of(pairs, "k"))
    torch.testing.assert_close(paper, 2 / K * released, rtol=1e-6, atol=0)
    torch.testing.assert_close(paper, torch.tensor(0.2857) * released, rtol=1e-3, atol=0, check_dtype=False)


def test_reductions():
    errors = torch.arange(24.0).reshape(3, 4, 2)
    assert reduce_pairs(errors, "mean_axes") == 11.5
    assert reduce_pairs(errors, "mean") == 23
    assert reduce_pairs(errors, "sum") == 69
    # Neither more pairs nor more images change the mean; more images change the sum.
    for more in (errors.repeat(1, 5, 1), errors.repeat(5, 1, 1)):
        assert reduce_pairs(more, "mean") == 23
    assert reduce_pairs(errors.repeat(1, 5, 1), "sum") == 69
    assert reduce_pairs(errors.repeat(5, 1, 1), "sum") == 5 * 69


def classes_of(pairs, *, signed):
    return targets_of(pairs, "cells", signed=signed).long()


@pytest.mark.parametrize(
    ("signed", "classes", "expected"), [(False, 7, 3.8918), (True, 13, 5.1299), (False, 14, 5.2781), (True, 27, 6.5917)]
)
def test_uniform_logits_of_ce(pairs, signed, classes, expected):
    logits = torch.zeros(1, K**4, classes)
    loss = ce_loss((logits, logits), classes_of(pairs, signed=signed)).item()
    assert loss == pytest.approx(expected, abs=1e-4)
    assert loss == pytest.approx(2 * math.log(classes))


@pytest.mark.parametrize(("signed", "classes", "expected"), [(False, 7, 3.6700), (True, 13, 4.8583)])
def test_best_constant_logits_of_ce(pairs, signed, classes, expected):
    targets = classes_of(pairs, signed=signed)
    frequencies = torch.bincount(targets[..., 0].flatten(), minlength=classes) / K**4
    logits = frequencies.log().expand(1, K**4, -1)
    assert ce_loss((logits, logits), targets).item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("signed", "classes", "expected"), [(False, 7, 1.6456), (True, 13, 1.1481)])
def test_uniform_logits_of_reg(pairs, signed, classes, expected):
    logits = torch.zeros(1, K**4, classes)
    assert reg_loss((logits, logits), classes_of(pairs, signed=signed)).item() == pytest.approx(expected, abs=1e-4)


def test_reg_is_the_formula_of_the_draft():
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 1, 1, 5, dtype=torch.float64), torch.tensor([[[1, 4]]])
    expected = 0.0
    for axis in range(2):
        p = logits[axis, 0, 0].softmax(0)
        mu = sum(p[c] * c for c in range(5))
        variance = sum(p[c] * (c - mu) ** 2 for c in range(5)) + 1e-8
        expected += (targets[0, 0, axis] - mu) ** 2 / variance + 0.3 * variance.sqrt().log()
    torch.testing.assert_close(reg_loss((logits[0], logits[1]), targets, alpha=0.3), expected)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"predictions \(1, 4, 2\) of targets \(1, 4, 1\)"):
        l1_loss(torch.zeros(1, 4, 2), torch.zeros(1, 4, 1))
    with pytest.raises(ValueError, match=r"expected \(B, m, 2\)"):
        reduce_pairs(torch.zeros(4, 2), "mean")
