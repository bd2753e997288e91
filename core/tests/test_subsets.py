"""Subsets are stratified, seeded, nested and exact; the fingerprint follows everything that is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from vitutor_core.data.sources.subsets import fingerprint, subset_indices
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig


def config(**fields: object) -> DataConfig:
    return DataConfig(image_size=8, **fields)


@pytest.fixture
def labels() -> np.ndarray:
    """Classes of 100, 50, 37 and 3 images, shuffled."""
    ordered = np.repeat(np.arange(4), [100, 50, 37, 3]).astype(np.int64)
    return np.random.default_rng(0).permutation(ordered)


def counts(labels: np.ndarray, indices: np.ndarray) -> list[int]:
    return np.bincount(labels[indices], minlength=4).tolist()


def test_everything_is_the_default(labels: np.ndarray) -> None:
    np.testing.assert_array_equal(subset_indices(labels, config()), np.arange(190))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fraction": 0.1}, [10, 5, 3, 1]),
        ({"fraction": 0.29}, [29, 14, 10, 1]),  # 0.29 * 100 is 28.999999999999996 in binary
        ({"fraction": 0.5}, [50, 25, 18, 1]),
        ({"fraction": 0.001}, [1, 1, 1, 1]),
        ({"per_class": 3}, [3, 3, 3, 3]),
        ({"long_tail": 0.01}, [100, 22, 5, 1]),  # 100 * 0.01 ** (c / 3): 100, 21.5, 4.6, 1
        ({"long_tail": 0.5}, [100, 50, 37, 3]),  # 100, 79, 63, 50, where there are as many
        ({"long_tail": 0.001}, [100, 10, 1, 1]),
        ({"long_tail": 1.0}, [100, 50, 37, 3]),
    ],
)
def test_sizes_of_the_classes(labels: np.ndarray, fields: dict[str, object], expected: list[int]) -> None:
    for seed in range(3):
        indices = subset_indices(labels, config(**fields, subset_seed=seed))
        assert counts(labels, indices) == expected
        assert indices.dtype == np.int64
        assert np.all(np.diff(indices) > 0)


def test_subsets_are_nested_and_depend_on_the_seed(labels: np.ndarray) -> None:
    kept = [set(subset_indices(labels, config(fraction=share)).tolist()) for share in (0.1, 0.25, 0.5, 1.0)]
    assert kept[0] < kept[1] < kept[2] < kept[3]
    kept = [set(subset_indices(labels, config(per_class=count)).tolist()) for count in (1, 2, 3)]
    assert kept[0] < kept[1] < kept[2]
    # classes of 3 of 3 aside, another seed draws others
    first, second = (subset_indices(labels, config(fraction=0.5, subset_seed=seed)) for seed in (0, 1))
    assert first.tolist() != second.tolist()


def test_a_class_keeps_its_images_when_others_change(labels: np.ndarray) -> None:
    positions = np.flatnonzero(labels == 1)
    mixed = subset_indices(labels, config(fraction=0.5))
    alone = subset_indices(labels[positions], config(fraction=0.5))
    np.testing.assert_array_equal(mixed[labels[mixed] == 1], positions[alone])


def test_the_draw_is_pinned() -> None:
    # another draw would change every published number on a subset
    labels = np.arange(40, dtype=np.int64) % 2
    assert subset_indices(labels, config(per_class=3)).tolist() == [0, 2, 3, 11, 15, 26]


def test_the_draw_is_fair() -> None:
    labels = np.zeros(20, dtype=np.int64)
    seeds = 2000
    drawn = np.zeros(20)
    for seed in range(seeds):
        drawn[subset_indices(labels, config(per_class=5, subset_seed=seed))] += 1
    # binomial with p = 1/4: five standard deviations
    assert np.abs(drawn - seeds / 4).max() < 5 * np.sqrt(seeds * 3 / 16)


def test_a_class_too_small_is_named(labels: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"data\.per_class: class 3 has 3 training images, not 4; set it to 3 or"):
        subset_indices(labels, config(per_class=4))


def test_one_class_has_no_tail() -> None:
    assert len(subset_indices(np.zeros(8, dtype=np.int64), config(long_tail=0.1))) == 8


def test_the_fingerprint_follows_each_part() -> None:
    def split(content_hash: str) -> Split:
        return Split(np.zeros(4, np.int64), lambda _: Image.new("RGB", (1, 1)), str, content_hash)

    source = Source("a", ("x", "y"), (0, 0, 0), (1, 1, 1), split("t"), split("e"))
    indices = np.arange(3, dtype=np.int64)
    reference = fingerprint(source, indices)
    assert len(reference) == 64
    assert reference == fingerprint(dataclasses.replace(source, name="b"), indices.copy())
    others = [
        fingerprint(source, indices[:2]),
        fingerprint(source, indices[::-1]),
        fingerprint(dataclasses.replace(source, class_names=("y", "x")), indices),
        fingerprint(dataclasses.replace(source, class_names=("x", "yy")), indices),
        fingerprint(dataclasses.replace(source, train=split("e"), evaluation=split("t")), indices),
        fingerprint(dataclasses.replace(source, train=split("u")), indices),
        fingerprint(dataclasses.replace(source, evaluation=split("u")), indices),
    ]
    assert len({reference, *others}) == 8
