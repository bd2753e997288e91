import numpy as np
import pytest

from vitutor_core.data import keyed

MASK = 2**64 - 1


def reference_mix(*key):
    """SplitMix64's finaliser, folded over the key, in Python's integers."""
    state = 0
    for part in key:
        z = (state + 0x9E3779B97F4A7C15 + part) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        state = z ^ (z >> 31)
    return state


@pytest.mark.parametrize("key", [(0,), (1, 2, 3), (2**40, 7), (-1, 5), (0, 0, 0, 0)])
def test_mix_is_splitmix64(key):
    assert int(keyed.mix(*key)) == reference_mix(*key)


def test_the_first_output_of_splitmix64_seeded_with_zero():
    # Published by the authors of the generator: seed 0 starts with this number.
    assert int(keyed.mix(0)) == 0xE220A8397B1DCDAF


def test_keys_broadcast():
    table = keyed.uniform(3, np.arange(4)[:, None], np.arange(5))
    assert table.shape == (4, 5)
    assert table[2, 3] == keyed.uniform(3, 2, 3)


def test_uniform_draws():
    draws = keyed.uniform(0, np.arange(100_000))
    assert draws.min() >= 0
    assert draws.max() < 1
    # Five standard deviations of the mean and of the share below a tenth.
    assert draws.mean() == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / 1e5))
    assert (draws < 0.1).mean() == pytest.approx(0.1, abs=5 * np.sqrt(0.09 / 1e5))
    neighbours = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(1e5)


def test_normal_draws():
    draws = keyed.normal(0, np.arange(100_000))
    assert np.isfinite(draws).all()
    assert draws.mean() == pytest.approx(0, abs=5 / np.sqrt(1e5))
    assert draws.std() == pytest.approx(1, abs=5 / np.sqrt(2e5))
    assert (np.abs(draws) < 1.96).mean() == pytest.approx(0.95, abs=5 * np.sqrt(0.0475 / 1e5))


def test_permutations():
    first, again, other = (keyed.permutation(1000, 0, epoch) for epoch in (0, 0, 1))
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, again)
    # Two unrelated permutations agree in one place on average.
    assert (first == other).sum() < 10


def test_seeds_fit_every_library():
    seeds = [keyed.seed_from(0, i) for i in range(1000)]
    assert min(seeds) >= 0
    assert max(seeds) < 2**31
    assert len(set(seeds)) == 1000
