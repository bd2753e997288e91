"""Memory of a process that opens a folder of parquet shards and reads all of its images, at two sizes of the set.

python -m benchmarks.memory [--out FILE]

What counts is the largest anonymous memory of the process (``RssAnon``), sampled every few milliseconds: what the
system cannot take back. Pages of a mapped file are its page cache, shared by all processes of the machine. Measured
are the first opening, in which the shards are copied to a mapped file, and the next. The images are noise, so nothing
is compressed.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.record import report

SIDE = 256
SHARD = 64
"""Images per shard; of 192 KiB each."""


def write_set(folder: Path, mebibytes: int) -> None:
    """Write a training split of about that size, and a small test split."""
    generator = np.random.default_rng(0)
    shards = max(round(mebibytes / (SHARD * SIDE * SIDE * 3 / 2**20)), 1)
    folder.mkdir(parents=True)
    for split, count in (("train", shards), ("test", 1)):
        for number in range(count):
            images = []
            for _ in range(SHARD):
                buffer = io.BytesIO()
                pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(buffer, "PPM")
                images.append({"bytes": buffer.getvalue(), "path": None})
            table = pa.table({"image": images, "label": [index % 2 for index in range(SHARD)]})
            pq.write_table(table, folder / f"{split}-{number:05}-of-{count:05}.parquet")


def measure(folder: Path) -> dict[str, float]:
    """Return what reading all images takes in a process of its own: memory in MiB beyond its start, and seconds."""
    command = [sys.executable, "-c", f"from benchmarks.memory import child; child({str(folder)!r})"]
    result: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result


def child(folder: str) -> None:
    """Measure this process, and print the figures."""
    from vitutor_core.data.sources.open import open_source
    from vitutor_core.schema import DataConfig

    pa.table({"image": [b""]})  # what pyarrow needs by itself
    peak = start = _anonymous()
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.003):
            peak = max(peak, _anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    began = time.perf_counter()
    source = open_source(DataConfig(source=f"parquet:{folder}", image_size=8))
    opened = time.perf_counter()
    for index in range(len(source.train.labels)):
        source.train.read(index)
    read = time.perf_counter()
    done.set()
    thread.join()
    print(json.dumps({"peak_mib": round(peak - start, 1), "open_s": opened - began, "read_s": read - opened}))


def _anonymous() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def main() -> None:
    """Measure, and report."""
    figures: dict[str, Any] = {}
    for mebibytes in (96, 768):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "set"
            write_set(folder, mebibytes)
            figures[f"{mebibytes} MiB"] = {"first": measure(folder), "again": measure(folder)}
    report("memory", figures)


if __name__ == "__main__":
    main()
