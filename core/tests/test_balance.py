"""Balanced sampling: classes take turns, exactly, whatever their sizes; off, the order is that of before."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from conformance.suite import Crash
from core.tests.train_samples import before_update, crash, run, same, tiny_config, weights
from vitutor_core.data.sampler import KeyedSampler, join

LABELS = np.repeat(np.arange(3), [40, 9, 2])[np.random.default_rng(0).permutation(51)]


def epoch_of(number, *, batch_size=17, **options):
    """Return the views of an epoch of one process."""
    order = KeyedSampler(51, seed=3, batch_size=batch_size, **options)
    return join([views for _, parts in order.steps(number) for views in parts])


def test_each_class_has_one_view_in_every_turn():
    views = epoch_of(0, balanced=LABELS)
    turns = LABELS[views.indices].reshape(17, 3)
    assert (np.sort(turns, axis=1) == [0, 1, 2]).all()
    assert len({tuple(turn) for turn in turns}) > 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_samples_of_a_class_come_equally_often_and_no_view_twice(repeats):
    views = epoch_of(0, balanced=LABELS, repeats=repeats, num_views=306)
    assert len(set(zip(views.indices.tolist(), views.repeats.tolist(), strict=True))) == 306
    times = Counter(views.indices.tolist())
    for label, count in enumerate(np.bincount(LABELS)):
        of_class = [times[index] for index in np.flatnonzero(label == LABELS).tolist()]
        assert sum(of_class) == 102
        assert max(of_class) - min(of_class) <= repeats, (label, count)


def test_the_order_is_keyed():
    first = epoch_of(0, balanced=LABELS)
    assert np.array_equal(first.indices, epoch_of(0, balanced=LABELS).indices)
    assert not np.array_equal(first.indices, epoch_of(1, balanced=LABELS).indices)
    order = KeyedSampler(51, seed=3, batch_size=17, balanced=LABELS)
    (_, (last,)) = next(iter(order.steps(0, start_step=2)))
    assert np.array_equal(last.indices, first.indices[34:])
    halves = [epoch_of(0, batch_size=6, balanced=LABELS, rank=rank, world_size=2) for rank in range(2)]
    whole = epoch_of(0, batch_size=6, balanced=LABELS)
    assert np.array_equal(np.stack([half.indices for half in halves], axis=1).ravel(), whole.indices)


def test_a_balanced_run_resumes_bit_for_bit_and_says_so(tmp_path, monkeypatch):
    settings = ("data.balance=sampling", "data.per_class=null", "data.long_tail=0.1", "data.fraction=1.0")
    record = run(tmp_path / "whole", *settings)
    assert record["config"]["data"]["balance"] == "sampling"
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["identity"]["config"]["data.balance"] == "sampling"
    with monkeypatch.context() as patch:
        before_update(patch, record["updates"] // 2, crash)
        with pytest.raises(Crash):
            run(tmp_path / "killed", *settings)
    run(tmp_path / "killed", *settings)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    run(tmp_path / "plain", *settings[1:])
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "plain"))


def test_it_is_off_by_default():
    assert tiny_config().data.balance == "none"
