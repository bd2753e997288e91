"""What each of several processes does that time the plain step together; see `vitutor_core.bench.gpu.scaling`."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from vitutor_core.bench.driven import Driven
from vitutor_core.bench.plain import endless
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.bench.timing import wait_for
from vitutor_core.distributed import processes
from vitutor_core.files import write_json
from vitutor_core.schema import RunConfig
from vitutor_core.train.supervised import Supervised


def measure(device: str, seconds: float, config: dict[str, Any], out: str) -> None:
    """Time steps for about ``seconds``; the first process writes the median in seconds to ``out``."""
    whole = RunConfig.from_mapping(config, where="bench")
    with processes(device) as group:
        own = whole.changed([f"train.batch_size={whole.train.batch_size // group.world_size}"])
        data = synthetic(own, group.device)
        run, batches, times = Driven(whole, Supervised.build, data, group), endless(data.train), list[float]()
        deadline = time.perf_counter() + seconds
        # All make the same number of steps: each waits for the others' gradients.
        while group.any(len(times) < 5 or time.perf_counter() < deadline):
            started = time.perf_counter()
            run.update(next(batches))
            wait_for(group.device)
            times.append(time.perf_counter() - started)
        if group.is_main:
            write_json(Path(out), {"step_s": statistics.median(times[2:])})
