"""Statistics by hand, and by simulated tables in which no row is better than another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from vitutor_core.report.significance import LEVEL, Estimate, contrast, holm, p_value, smallest_effect, spread


def welch(ours, reference) -> Estimate:
    """Compare values of seeds, (..., nA) and (..., nB), by their spread alone (Welch 1947)."""
    return spread([ours, reference], (1, -1))


def paired(ours, reference) -> Estimate:
    """Compare answers to the same images, (..., nA, N) and (..., nB, N) booleans; in points of accuracy."""
    return contrast([ours, reference], (1, -1))


def power(effect: float, standard_error: float, df: float, level: float) -> float:
    """The chance that a test at ``level`` sees a true difference of ``effect``, in its direction."""
    return float(1 - special.nctdtr(df, abs(effect) / standard_error, special.stdtrit(df, 1 - level / 2)))


def test_welch_by_hand() -> None:
    """Standard deviations of 1 and 2 over 3 and 4 seeds: 1/3 + 4/4, df = (4/3)^2 / ((1/3)^2 / 2 + 1 / 3)."""
    found = welch([4.0, 5.0, 6.0], np.array([-1.0, -1.0, 1.0, 1.0]) * math.sqrt(3))
    assert found.mean == pytest.approx(5.0)
    assert found.standard_error == pytest.approx(math.sqrt(4 / 3))
    assert found.df == pytest.approx(32 / 7)
    oracle = stats.ttest_ind([4.0, 5.0, 6.0], [-math.sqrt(3)] * 2 + [math.sqrt(3)] * 2, equal_var=False)
    assert p_value(found) == pytest.approx(oracle.pvalue)


def test_paired_by_hand() -> None:
    """Two seeds each, four images; variances in units of accuracy.

    Ours: 0.75 twice, no variance at all. Reference: 0.5 and 0.25, so vB = 1/32. Its seeds disagree on the last image
    alone: 1/8 on average, (1/8 - 1/32) 4/3 = 1/8 without what the seeds share, and 1/8 / 4 = vB. The difference at the
    images is 1, 1, 0, -1/2, of variance 9/16, of which the seeds explain 1/8 / 2: vI = 1/2.
    V = vB / 2 + vI / 4 = 9/64.
    """
    ours = [[1, 1, 1, 0], [1, 1, 1, 0]]
    reference = [[0, 0, 1, 1], [0, 0, 1, 0]]
    found = paired(ours, reference)
    assert found.mean == pytest.approx(37.5)
    assert found.standard_error == pytest.approx(37.5)
    assert found.df == pytest.approx((9 / 64) ** 2 / ((1 / 64) ** 2 / 1 + (1 / 8) ** 2 / 3))
    assert p_value(found) == pytest.approx(2 * stats.t.sf(1, float(found.df)))
    assert [-value for value in paired(reference, ours)[:1]] == pytest.approx([37.5])


def test_seeds_that_agree_by_chance_do_not_count_as_equal() -> None:
    """Half of 400 images are answered by the toss of a coin, but each seed gets the same number of them right."""
    rng = np.random.default_rng(0)
    answers = np.stack([np.r_[np.ones(200), rng.permutation(200) < 100] for _ in range(6)])
    found = paired(answers[:3], answers[3:])
    assert found.mean == 0
    # A seed's accuracy has the variance of 200 tosses of a coin, 50 images of 400^2: sqrt(2 / 3 * 50) / 4 points.
    assert found.standard_error == pytest.approx(math.sqrt(100 / 3) / 4, rel=0.1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([[0.5, 0.6], [0.03, 0.02]]).tolist() == [[1.0, 1.0], pytest.approx([0.04, 0.04])]
    assert holm([]).tolist() == []


def test_nothing_to_judge_by() -> None:
    assert p_value(welch([90.0, 90.0], [90.0, 90.0])) == 1
    assert p_value(welch([91.0, 91.0], [90.0, 90.0])) == 1
    assert p_value(paired(np.ones((3, 5)), np.ones((3, 5)))) == 1


def made_up_answers(
    rng: np.random.Generator, shape: tuple[int, int, int, int], *, seed_sd: float, row_sd: float, gain: float = 0.0
) -> np.ndarray:
    """Answers (tables, rows, seeds, images): images are easy or hard, differently so for each row, and seeds vary.

    Deviations are in logits; the first row is ahead by ``gain``.
    """
    tables, rows, seeds, images = shape
    draws = [(2.5, (tables, 1, 1, images)), (row_sd, (tables, rows, 1, images)), (seed_sd, (tables, rows, seeds, 1))]
    logits = 1 + sum(sd * rng.standard_normal(size, dtype=np.float32) for sd, size in draws)
    logits[:, 0] += gain
    logits = logits + rng.standard_normal(shape, dtype=np.float32)
    return rng.random(shape, dtype=np.float32) < 1 / (1 + np.exp(-logits))


def against_the_first(answers: np.ndarray) -> Estimate:
    return paired(answers[:, 1:], answers[:, :1])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    ("comparisons", "seed_sd", "row_sd"),
    [(6, 0.0, 0.8), (6, 0.05, 0.8), (6, 0.2, 0.8), (6, 0.08, 3.0), (20, 0.2, 0.8)],
    ids=["seeds alike", "typical", "seeds apart", "images apart", "many rows"],
)
def test_at_most_one_table_of_twenty_has_a_false_verdict(
    seeds: int, comparisons: int, seed_sd: float, row_sd: float
) -> None:
    """Of 2,000 tables without a true difference; all rows are compared to the same one."""
    rng = np.random.default_rng(seeds)
    false = 0
    for _ in range(20):
        answers = made_up_answers(rng, (100, comparisons + 1, seeds, 200), seed_sd=seed_sd, row_sd=row_sd)
        false += int((holm(p_value(against_the_first(answers))) <= LEVEL).any(-1).sum())
    assert false <= 0.05 * 2000


@pytest.mark.parametrize("seeds", [3, 5])
def test_at_most_one_table_of_twenty_is_false_without_answers(seeds: int) -> None:
    values = np.random.default_rng(seeds).standard_normal((2000, 13, seeds))
    values[:, ::2] *= 3  # every other row varies more
    p = p_value(welch(values[:, 1:], values[:, :1]))
    assert (holm(p) <= LEVEL).any(-1).sum() <= 0.05 * 2000


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("level", [0.05, 0.05 / 10])
def test_the_smallest_effect_is_seen_in_four_of_five_tests(seeds: int, level: float) -> None:
    """Rows with a standard deviation of 1, so that the error of a difference is known: sqrt(2 / n)."""
    error, df = math.sqrt(2 / seeds), 2 * (seeds - 1)
    effect = smallest_effect(error, df, level)
    assert power(effect, error, df, level) == pytest.approx(0.8, abs=1e-4)
    values = np.random.default_rng(seeds).standard_normal((20_000, 2, seeds))
    found = welch(values[:, 0] + effect, values[:, 1])
    # Student's test of rows that vary alike, whose degrees of freedom are those above; Welch's are estimated.
    pooled = np.sqrt(values.var(-1, ddof=1).mean(-1)) * error
    seen = p_value(Estimate(found.mean, pooled, np.full(20_000, float(df)))) <= level
    assert seen.mean() == pytest.approx(0.8, abs=0.01)
    assert (p_value(found) <= level).mean() <= seen.mean()


def test_power_is_the_share_of_simulated_tables_that_see_the_difference() -> None:
    """Where images decide more than seeds do, error and degrees of freedom of a table are near those of all."""
    answers = made_up_answers(np.random.default_rng(0), (2000, 2, 5, 400), seed_sd=0.02, row_sd=3.0, gain=0.8)
    found = paired(answers[:, 0], answers[:, 1])
    expected = power(found.mean.mean(), math.sqrt((found.standard_error**2).mean()), np.median(found.df), LEVEL)
    assert 0.6 < expected < 0.95
    seen = (p_value(found) <= LEVEL) & (found.mean > 0)
    assert seen.mean() == pytest.approx(float(expected), abs=0.03)
