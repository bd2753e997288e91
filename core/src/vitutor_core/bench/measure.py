"""Measure a machine: run the suite, write and show what it found."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from vitutor_core.bench import result, show, suite
from vitutor_core.bench.subjects import on_processes, subjects
from vitutor_core.distributed import Processes, choose_device
from vitutor_core.files import write_json
from vitutor_core.provenance import here
from vitutor_core.terminal import say


def measure_machine(
    out: Path, *, minutes: float, device: str, scale: str | None, threads: int, only: Sequence[str]
) -> None:
    """Write ``bench.json`` and ``bench.svg`` into ``out`` and print the table; ``scale`` None fits the device."""
    torch.set_num_threads(threads)
    place = choose_device(device)
    origin = here()  # a checkout may change while this runs
    scale = scale or ("cifar100" if place.type == "cuda" else "small")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    with tempfile.TemporaryDirectory() as folder:
        found = suite.run(
            scale,
            subjects(scale, Path(folder), bf16=place.type == "cuda"),
            Processes(0, 1, place),
            minutes=minutes,
            launch=on_processes,
            only=only,
            begin=lambda part, seconds: say(f"{part}: {seconds:.0f} s", err=True),
        )
    peak_mib = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    facts = {"minutes": minutes, "device": str(place), "scale": scale, "threads": threads, "peak_mib": peak_mib}
    record = result.record(found, **facts, **origin)
    write_json(out / "bench.json", record)
    show.show(found)
    name = record["machine"]["gpu"] if place.type == "cuda" else record["machine"]["processor"]
    show.draw(found, out / "bench", caption=f"{name}, scale {scale}")
    say(f"{name}, {threads} threads, scale {scale}, {peak_mib} MiB of memory at the peak; {out}")
