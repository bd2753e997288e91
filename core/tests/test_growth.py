"""The benchmark of growth counts what it says."""

from __future__ import annotations

import mmap

import pytest

from benchmarks import growth


def test_the_slope_is_that_of_the_last_two_points():
    assert growth.slope((1, 10, 100), [5.0, 7.0, 700.0]) == pytest.approx(2)
    assert growth.slope((2, 4), [3.0, 3.0]) == 0


def test_a_point_measures_every_column_of_its_axis():
    found = growth.apart(growth.of_classes, (3,))[0]
    assert set(growth.AXES[2].most) <= found.keys()
    assert all(found[name] > 0 for name in growth.AXES[2].most)


def test_memory_is_the_largest_that_a_process_had_beyond_its_start():
    def take(mebibytes):
        # Mapped, since an array may get pages that this process has had before and freed: no memory beyond its start.
        pages = mmap.mmap(-1, mebibytes * 2**20)
        for _ in range(mebibytes):
            pages.write(bytes(2**20))
        return {}

    few, many = (found[growth.MEMORY] for found in growth.apart(take, (40, 100)))
    assert few == pytest.approx(40, abs=4)
    assert many == pytest.approx(100, abs=4)


def test_processes_have_a_batch_each():
    found = growth.of_processes(2)
    assert found.keys() == growth.AXES[4].most.keys()
