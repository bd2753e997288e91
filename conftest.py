"""Settings of the whole test suite; read before torch is imported."""

from __future__ import annotations

import atexit
import gc
import os

import pytest

from conformance import forked

# The tests' maps are small: a second thread only waits, many times longer where other work keeps the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No power is cut during tests: what they write need not wait for the disk, but still be an open file.
os.fsync = os.fstat
_LONG = frozenset({"test_graph_run", "test_notebooks", "test_website", "test_readme", "test_reproduce"})
_SHORT = frozenset({"test_core_knows_no_paper", "test_security", "test_settings"})


def pytest_configure(config: pytest.Config) -> None:
    """Let all workers of pytest-xdist fork from one server, which takes seconds to start."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        forked.share()


def pytest_collection_finish() -> None:
    """Leave what was imported and collected out of garbage collections: they would go through a million objects."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # else libraries in C++ would take for a leak what is still there at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest and end with a thousand tests of milliseconds: all processes end together."""
    items.sort(key=lambda item: (item.path.stem not in _LONG) + (item.path.stem in _SHORT))
