"""Settings of the whole test suite; read before torch is imported."""

from __future__ import annotations

import os

import pytest

# The tests' maps are small: a second thread only waits, many times longer where other work keeps the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: at the end, one process would wait for the other."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in ("test_graph_run", "test_notebooks")))
