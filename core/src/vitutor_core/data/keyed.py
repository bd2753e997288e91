"""Counter-based random numbers: every draw is a pure function of its key.

A draw is identified by integers such as (seed, epoch, sample index, number of the draw), hashed by the 64-bit
finaliser of SplitMix64 (Steele, Lea and Flood, 2014). Nothing has state, so results depend neither on the number
of workers or processes nor on where a run was interrupted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mix(*key: ArrayLike) -> NDArray[np.uint64]:
    """Hash integer keys, which broadcast against each other, to uniform 64-bit integers."""
    state = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            state = _finalise(state + _GAMMA + np.asarray(part).astype(np.int64).astype(np.uint64))
    return np.asarray(state)


def uniform(*key: ArrayLike) -> NDArray[np.float64]:
    """Draw from [0, 1) with 53 random bits."""
    return (mix(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(*key: ArrayLike) -> NDArray[np.float64]:
    """Draw from N(0, 1) by the Box-Muller transform of two keyed uniforms."""
    radius = np.sqrt(-2.0 * np.log1p(-uniform(*key, 1)))
    return np.asarray(radius * np.cos(2.0 * np.pi * uniform(*key, 2)))


def permutation(size: int, *key: int) -> NDArray[np.int64]:
    """Return a random order of ``range(size)``."""
    return np.argsort(mix(*key, np.arange(size)), kind="stable").astype(np.int64)


def seed_from(*key: int) -> int:
    """Return a 31-bit seed for a library that keeps its own generator."""
    return int(mix(*key)) & 0x7FFFFFFF


def _finalise(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
