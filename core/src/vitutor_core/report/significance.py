"""Whether a difference between two rows is more than chance, and how large it must be to be seen.

A row's accuracy varies with its seeds and with the choice of the evaluation images. For two rows with nA and nB seeds,
each evaluated on the same N images, the variance of the difference of their accuracies is

    V = vA / nA + vB / nB + vI / N

vA, vB: variance between seeds. How much of it remains even if all seeds are equally good is known precisely from the
images, r / N, so that an estimate from three seeds that happens to fall below it is raised to it.
vI: variance, over images, of the difference between the rows at an image, beyond what the seeds explain.

The difference over sqrt(V) is held against Student's t with the degrees of freedom of Welch and Satterthwaite, and
Holm's correction keeps the chance of any false verdict in a table at `LEVEL`; docs/decisions/0012 has the simulations.
All functions take arrays with any leading dimensions, so that thousands of tables are tested at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import nctdtrinc, stdtr, stdtrit

LEVEL = 0.05
"""Chance of any false verdict in a table."""
POWER = 0.8

Floats = NDArray[np.float64]


class Estimate(NamedTuple):
    """A difference of two rows, its standard error, and the degrees of freedom of that."""

    mean: Floats
    standard_error: Floats
    df: Floats


class _Row(NamedTuple):
    """What is known of a row: (...) but for ``images``, (..., N)."""

    mean: Floats
    seeds: Floats
    """Variance between seeds, at least that of ``residual``."""
    residual: Floats
    """Variance over seeds of the answer to one image, without what a seed changes for all images alike."""
    images: Floats
    """Share of the seeds that were right, per image."""


def spread(rows: Sequence[ArrayLike], factors: Sequence[int]) -> Estimate:
    """Add up ``factors`` times rows of values of seeds, (..., n) each, judged by their spread alone."""
    values = [(np.asarray(row, dtype=float), factor) for row, factor in zip(rows, factors, strict=True)]
    parts = [(factor**2 * row.var(-1, ddof=1) / row.shape[-1], row.shape[-1] - 1) for row, factor in values]
    return _estimate(sum(factor * row.mean(-1) for row, factor in values), parts)


def contrast(rows: Sequence[ArrayLike], factors: Sequence[int]) -> Estimate:
    """Add up ``factors`` times the accuracies of rows of answers to the same images, (..., n, N) booleans; in points.

    Four rows with the factors 1, -1, -1, 1 tell whether two gains over one row add up. Each row's seeds are drawn
    apart, so that their variances add up; over images it is the sum itself that varies.
    """
    answers = [np.asarray(row, dtype=float) for row in rows]
    num_images = answers[0].shape[-1]
    found = [(_row(row), row.shape[-2], factor) for row, factor in zip(answers, factors, strict=True)]
    explained = sum(factor**2 * row.residual / n for row, n, factor in found)
    by_image = np.maximum(0, np.var(sum(factor * row.images for row, _, factor in found), -1, ddof=1) - explained)
    parts = [(factor**2 * row.seeds / n, n - 1) for row, n, factor in found]
    total = _estimate(
        sum(factor * row.mean for row, _, factor in found), [*parts, (by_image / num_images, num_images - 1)]
    )
    return Estimate(100 * total.mean, 100 * total.standard_error, total.df)


def _row(answers: Floats) -> _Row:
    num_images = answers.shape[-1]
    accuracy = answers.mean(-1)
    between = accuracy.var(-1, ddof=1)
    # Two-way analysis of variance: the mean over images of the variance over seeds holds that of the seeds, too.
    residual = (answers.var(-2, ddof=1).mean(-1) - between) * num_images / (num_images - 1)
    return _Row(accuracy.mean(-1), np.maximum(between, residual / num_images), residual, answers.mean(-2))


def _estimate(mean: Any, parts: list[tuple[Any, int]]) -> Estimate:
    """Add up variances of known degrees of freedom (Satterthwaite 1946)."""
    variance = np.asarray(sum(part for part, _ in parts))
    squares = np.asarray(sum(part**2 / df for part, df in parts))
    df = np.divide(variance**2, squares, out=np.ones_like(variance), where=squares > 0)
    return Estimate(np.asarray(mean), np.sqrt(variance), df)


def p_value(found: Estimate) -> Floats:
    """Return the two-sided p-values; 1 where nothing varied, since there is nothing to judge by."""
    t = np.divide(found.mean, found.standard_error, out=np.zeros_like(found.mean), where=found.standard_error > 0)
    return np.asarray(2 * stdtr(found.df, -np.abs(t)))


def holm(p: ArrayLike) -> Floats:
    """Return Holm's adjusted p-values of the tables (..., m): a verdict is one that is at most `LEVEL` (Holm 1979)."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, axis=-1, kind="stable")
    steps = np.take_along_axis(values, order, -1) * np.arange(values.shape[-1], 0, -1)
    adjusted = np.empty_like(values)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(steps, -1), 1), -1)
    return adjusted


def smallest_effect(standard_error: ArrayLike, df: ArrayLike, level: float) -> Floats:
    """Return the true difference that a test at ``level`` sees with a chance of `POWER`."""
    return np.asarray(standard_error * nctdtrinc(df, 1 - POWER, stdtrit(df, 1 - level / 2)))
