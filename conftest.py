"""Settings of the whole test suite; read before torch is imported."""

from __future__ import annotations

import os

# The tests' maps are small: a second thread only waits, many times longer where other work keeps the cores busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
