"""Which views of which samples make up each micro-batch: a pure function of (seed, epoch, step, rank)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitutor_core.data import keyed
from vitutor_core.errors import ConfigError

_TURNS = 0x7C125
_MEMBERS = 0x3E3BE
"""Tell the draws of balanced classes from others with the same seed and epoch."""


class SampleKeys(NamedTuple):
    """The views of one micro-batch; together with a draw number, each is the key of its random numbers.

    indices: (B,) positions in the training subset. repeats: (B,) number of the view of that sample in this epoch.
    """

    seed: int
    epoch: int
    indices: NDArray[np.int64]
    repeats: NDArray[np.int64]

    def uniform(self, first: int, count: int) -> NDArray[np.float64]:
        """Return draws ``first`` to ``first + count - 1`` of each view from [0, 1): (B, count)."""
        return keyed.uniform(*self._key(), np.arange(first, first + count))

    def normal(self, first: int, count: int) -> NDArray[np.float64]:
        """Return standard normal draws, keyed like those of `uniform`: (B, count)."""
        return keyed.normal(*self._key(), np.arange(first, first + count))

    def _key(self) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64]]:
        return self.seed, self.epoch, self.indices[:, None], self.repeats[:, None]


def join(parts: Sequence[SampleKeys]) -> SampleKeys:
    """Return the views of several micro-batches of one epoch as one."""
    indices, repeats = (np.concatenate(column) for column in zip(*(part[2:] for part in parts), strict=True))
    return SampleKeys(parts[0].seed, parts[0].epoch, indices, repeats)


class KeyedSampler:
    """The training order of one process.

    An epoch has ``num_views`` views (default: one of each of the N samples), taken from one permutation of the samples
    after another. Given the samples' ``balanced`` labels, (N,), it goes through all K classes in turns instead, each
    turn in an order of its own; a class hands out one permutation of its samples after another. So in every K views
    of an epoch each class has one, and the samples of a class come equally often, give or take one.
    With ``repeats`` r, each sample comes r times in a row (repeated augmentation, Hoffer et al. 2020,
    in DeiT's form). Update k takes views ``[k * batch_size, (k + 1) * batch_size)``; the last incomplete batch is
    dropped. Rank i takes every ``world_size``-th of them from the i-th on, in ``accumulate`` equal micro-batches.

    Raises ConfigError if the batch is larger than an epoch or does not divide evenly.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        batch_size: int,
        num_views: int | None = None,
        balanced: NDArray[np.int64] | None = None,
        accumulate: int = 1,
        repeats: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        num_views = num_samples if num_views is None else num_views
        if batch_size > num_views:
            raise ConfigError(
                f"train.batch_size: {batch_size} is larger than an epoch of {num_views} images; set it to {num_views} "
                "at most"
            )
        if batch_size % (accumulate * world_size):
            raise ConfigError(
                f"train.batch_size: {batch_size} does not divide evenly into {world_size} processes x "
                f"train.accumulate = {accumulate} micro-batches"
            )
        self.num_samples = num_samples
        self._classes = [] if balanced is None else [np.flatnonzero(balanced == label) for label in np.unique(balanced)]
        self.seed = seed
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.repeats = repeats
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = num_views // batch_size
        self.micro_batch_size = batch_size // (accumulate * world_size)

    def steps(self, epoch: int, start_step: int = 0) -> Iterator[tuple[int, tuple[SampleKeys, ...]]]:
        """Yield ``(step, micro-batches)`` for each update of the epoch from ``start_step`` on."""
        count = -(-self.steps_per_epoch * self.batch_size // self.repeats)
        samples_in_order, times_before = self._balanced(epoch, count) if self._classes else self._all(epoch, count)
        for step in range(start_step, self.steps_per_epoch):
            begin, end = step * self.batch_size, (step + 1) * self.batch_size
            entries = np.arange(begin + self.rank, end, self.world_size)
            positions = entries // self.repeats
            samples = samples_in_order[positions]
            repeats = times_before[positions] * self.repeats + entries % self.repeats
            micro_batches = zip(np.split(samples, self.accumulate), np.split(repeats, self.accumulate), strict=True)
            yield step, tuple(SampleKeys(self.seed, epoch, indices, numbers) for indices, numbers in micro_batches)

    def _all(self, epoch: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first ``count`` samples of an epoch or more, and how often each came before in it."""
        passes = -(-count // self.num_samples)
        order = [keyed.permutation(self.num_samples, self.seed, epoch, number) for number in range(passes)]
        return np.concatenate(order), np.repeat(np.arange(passes), self.num_samples)

    def _balanced(self, epoch: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the same where classes take turns."""
        number = len(self._classes)
        turns = np.arange(-(-count // number))
        samples = np.empty((len(turns), number), dtype=np.int64)
        before = np.empty_like(samples)
        for index, members in enumerate(self._classes):
            before[:, index] = turns // len(members)
            passes = np.arange(before[-1, index] + 1)[:, None]
            ranks = keyed.mix(self.seed, epoch, _MEMBERS, index, passes, np.arange(len(members)))
            samples[:, index] = members[np.argsort(ranks, axis=1, kind="stable")].ravel()[: len(turns)]
        ranks = keyed.mix(self.seed, epoch, _TURNS, turns[:, None], np.arange(number))
        order = np.argsort(ranks, axis=1, kind="stable")
        return np.take_along_axis(samples, order, axis=1).ravel(), np.take_along_axis(before, order, axis=1).ravel()
