"""What a CPU's cores are best used for: jobs side by side, threads of one job, and memory in huge pages.

python -m benchmarks.cores [--out FILE.json] [--pairs 10]     12 minutes on two cores, which must be idle

Each measurement is one or more new processes that train a ViT on one batch, at 32 px (as at scale ``small``) and at
224 px; those of one measurement begin together. ``jobs``: images per second of all jobs, with the cores shared between
them. ``huge pages``: seconds of one job with ``THP_MEM_ALLOC_ENABLE=1`` over those without, in pairs (A B B A ...); the
losses of a pair must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.growth import CPU, config_of, data_of, noise
from benchmarks.record import write
from vitutor_core.bench.driven import Driven
from vitutor_core.bench.plain import endless
from vitutor_core.distributed import Processes
from vitutor_core.provenance import usable_cores
from vitutor_core.train.supervised import Supervised

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
SIDES = {
    32: {"patch": 4, "width": 96, "depth": 4, "batch": 64},
    224: {"patch": 16, "width": 192, "depth": 12, "batch": 16},
}
UPDATES = {32: 20, 224: 5}
WARM_UP = 2


def train(side: int, threads: int, updates: int) -> dict[str, Any]:
    """Make updates on one batch of ``side`` pixels, once a line is read; return what they took, and the last loss."""
    size = SIDES[side]
    student = {"patch_size": size["patch"], "embed_dim": size["width"], "depth": size["depth"]}
    config = config_of(
        *(f"student.kwargs.{name}={value}" for name, value in student.items()),
        f"data.image_size={side}",
        f"train.batch_size={size['batch']}",
        f"runtime.threads={threads}",
    )
    torch.set_num_threads(threads)
    data = data_of(config, noise(size["batch"], side=side))
    run, batch = Driven(config, Supervised.build, data, Processes(0, 1, CPU)), next(endless(data.train))
    for _ in range(WARM_UP):
        run.update(batch)
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.perf_counter()
    for _ in range(updates):
        loss = run.update(batch)
    seconds = time.perf_counter() - started
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return {"seconds": seconds, "images": updates * size["batch"], "loss": float(loss), "peak_mib": peak}


def together(side: int, jobs: int, threads: int, updates: int, **environment: str) -> list[dict[str, Any]]:
    """Run so many jobs at once, each as a new process."""
    command = [sys.executable, "-m", "benchmarks.cores", "--child", json.dumps([side, threads, updates])]
    variables, pipe = os.environ | {"OMP_NUM_THREADS": str(threads)} | environment, subprocess.PIPE
    started = [subprocess.Popen(command, env=variables, stdin=pipe, stdout=pipe, text=True) for _ in range(jobs)]
    for process in started:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a measuring process ended early; what it says is above")
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0]) for process in started]


def jobs_or_threads(side: int, rounds: int) -> dict[str, Any]:
    """Return images per second of one job with all cores, of one per core, and of one more."""
    cores = usable_cores()
    arms = {"1 job": (1, cores), "a job per core": (cores, 1), "one job more": (cores + 1, 1)}
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, (jobs, threads) in arms.items():
            found = together(side, jobs, threads, UPDATES[side] * (threads if jobs == 1 else 1))
            rates[name].append(sum(one["images"] for one in found) / max(one["seconds"] for one in found))
    ratios = [per_core / single for single, per_core in zip(rates["1 job"], rates["a job per core"], strict=True)]
    return {
        "images_per_s": {name: _spread(values) for name, values in rates.items()},
        "a job per core over 1 job": _spread(ratios),
    }


def huge_pages(side: int, pairs: int) -> dict[str, Any]:
    """Return seconds and peak memory with huge pages over those without."""
    ratios, memory = [], []
    for pair in range(pairs):
        order = ("0", "1") if pair % 2 == 0 else ("1", "0")
        found = {value: together(side, 1, 1, UPDATES[side], **{HUGE_PAGES: value})[0] for value in order}
        if found["0"]["loss"] != found["1"]["loss"]:
            raise AssertionError(f"the losses differ: {found}")
        ratios.append(found["1"]["seconds"] / found["0"]["seconds"])
        memory.append(found["1"]["peak_mib"] / found["0"]["peak_mib"])
    return {"seconds": _spread(ratios), "peak_memory": _spread(memory), "pairs": [round(one, 3) for one in ratios]}


def _spread(values: list[float]) -> dict[str, float]:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(median, 3), "lower_quartile": round(lower, 3), "upper_quartile": round(upper, 3)}


def main() -> None:
    """Measure both at both sizes, and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train(*options.child)))
        return
    figures = {
        "jobs": {f"{side} px": jobs_or_threads(side, max(options.pairs // 3, 2)) for side in SIDES},
        "huge pages": {f"{side} px": huge_pages(side, max(options.pairs, 2)) for side in SIDES},
    }
    write("cores", {"cores": usable_cores(), **figures}, options.out)


if __name__ == "__main__":
    main()
