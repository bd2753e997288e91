"""How the cost of training grows: with images, image size, classes, width of the student, and processes.

python -m benchmarks.growth [--out FILE.json] [--few]     under 5 minutes on two cores; the figure lies beside FILE

Everything is CPU time of one thread, which other work on the machine hardly changes, and each point is measured in a
process of its own. ``slope`` is that of the last two points in a log-log plot: 0 is flat, 1 linear. ``most`` is what it
should be at most, and ``broken`` names where it is more. Images are noise, the student is a small ViT.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.record import write
from vitutor_core import distributed
from vitutor_core.bench.driven import Driven
from vitutor_core.bench.plain import endless
from vitutor_core.data.build import build_data
from vitutor_core.data.sources.images import array_split
from vitutor_core.data.types import Data, Source
from vitutor_core.distributed import Processes
from vitutor_core.evaluate.accuracy import measure
from vitutor_core.report.drawing import COLOURS, draw_legend, save_picture
from vitutor_core.schema import RunConfig
from vitutor_core.train.supervised import Supervised

CPU = torch.device("cpu")
BATCH, IMAGES, EVALUATED, UPDATES = 64, 640, 500, 7
DATA, UPDATE, EPOCH = "build the data, ms", "an update, ms", "begin an epoch, ms"
EVALUATION, MEMORY = "evaluate an image, ms", "peak memory, MiB"
COLUMNS = (DATA, UPDATE, EPOCH, EVALUATION, MEMORY)
TOLERANCE = 0.2
"""A slope may be steeper by this much: an update's own part, and the noise of two short measurements."""


@dataclass(frozen=True)
class Axis:
    """What grows, the points, and for each measured column how steep its slope may be."""

    name: str
    points: tuple[int, ...]
    measure: Callable[[int], dict[str, float]]
    most: dict[str, float]


def config_of(*settings: str) -> RunConfig:
    """Return a small ViT on 32 px, in patches of 8."""
    values = {
        "data": {"image_size": 32, "decoded_gb": 0},
        "augment": {"pad_crop": 4, "flip": 0.5, "mixup": 0.8},
        "student": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4},
        },
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1000, "batch_size": BATCH},
        "runtime": {"device": "cpu", "threads": 1, "eval_batch_size": 100},
    }
    return RunConfig.from_mapping(values, where="growth").changed(settings)


def noise(images: int = IMAGES, *, side: int = 32, classes: int = 10) -> Source:
    """Return a source of noise, in which images repeat after some thousand."""
    block = np.random.default_rng(0).integers(0, 256, (min(images, 4096), side, side, 3), dtype=np.uint8)

    def split(count: int) -> Any:
        return array_split(block[np.arange(count) % len(block)], np.arange(count) % classes, "noise")

    names = tuple(f"class {number}" for number in range(classes))
    return Source("noise", names, (0.5,) * 3, (0.25,) * 3, split(images), split(max(EVALUATED, classes)))


def data_of(config: RunConfig, source: Source, **ranks: int) -> Data:
    """Build the data of a config from a source that is made already."""
    with mock.patch("vitutor_core.data.build.open_source", return_value=source):
        return build_data(config, device=CPU, **ranks)


def updates(config: RunConfig, data: Data, processes: Processes) -> tuple[Driven, float]:
    """Make updates and return the run, and the median CPU seconds of one without what the first ones set up."""
    run = Driven(config, Supervised.build, data, processes)
    batches, seconds = endless(data.train), list[float]()
    for _ in range(UPDATES):
        started = time.process_time()
        run.update(next(batches))
        seconds.append(time.process_time() - started)
    return run, statistics.median(seconds[2:])


def trained(config: RunConfig, source: Source) -> dict[str, float]:
    """Build the data, make updates, evaluate; return milliseconds of CPU time."""
    started = time.process_time()
    data = data_of(config, source)
    built = time.process_time() - started
    run, update = updates(config, data, Processes(0, 1, CPU))
    started = time.process_time()
    next(iter(data.train.epoch(1)))
    begun = time.process_time() - started
    started = time.process_time()
    classes = len(source.class_names)
    measure(run.method.inference_model(), None, data.evaluation, num_classes=classes, device=CPU, precision="fp32")
    evaluated = (time.process_time() - started) / len(source.evaluation.labels)
    return {DATA: 1e3 * built, UPDATE: 1e3 * update, EPOCH: 1e3 * begun, EVALUATION: 1e3 * evaluated}


def of_images(count: int) -> dict[str, float]:
    """Measure a set of ``count`` images of 32 px."""
    return trained(config_of(), noise(count))


def of_side(side: int) -> dict[str, float]:
    """Measure images of ``side`` pixels, in patches of 8 pixels."""
    return trained(config_of(f"data.image_size={side}", "train.batch_size=16"), noise(160, side=side))


def of_classes(count: int) -> dict[str, float]:
    """Measure ``count`` classes."""
    return trained(config_of(), noise(max(IMAGES, count), classes=count))


def of_width(width: int) -> dict[str, float]:
    """Measure a student of ``width`` channels."""
    return trained(config_of(f"student.kwargs.embed_dim={width}"), noise())


def of_processes(count: int) -> dict[str, float]:
    """Measure an update of ``count`` processes with a batch of the same size each, in CPU time of one of them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = apart(lambda rank: _together(rank, count, port), range(count))
    return {name: statistics.fmean(one[name] for one in found) for name in (UPDATE, MEMORY)}


def _together(rank: int, count: int, port: int) -> dict[str, float]:
    if count > 1:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ |= dict(zip(names, (str(rank), str(rank), str(count), "127.0.0.1", str(port)), strict=True))
    config = config_of(f"train.batch_size={BATCH * count}")
    with distributed.processes("cpu") as group:
        data = data_of(config, noise(IMAGES * count), rank=group.rank, world_size=group.world_size)
        _, update = updates(config, data, group)
    return {UPDATE: 1e3 * update}


AXES = (
    Axis(
        "images",
        (500, 5_000, 50_000, 500_000),
        of_images,
        {DATA: 1, UPDATE: 0, EPOCH: 1, EVALUATION: 0, MEMORY: 1},
    ),
    Axis("side in pixels", (32, 64, 128, 256), of_side, {DATA: 2, UPDATE: 2, EVALUATION: 2, MEMORY: 2}),
    Axis("classes", (10, 100, 1_000, 10_000), of_classes, {DATA: 1, UPDATE: 1, EVALUATION: 1, MEMORY: 1}),
    Axis("width in channels", (48, 96, 192, 384), of_width, {UPDATE: 2, EVALUATION: 2, MEMORY: 2}),
    Axis("processes", (1, 2, 4), of_processes, {UPDATE: 0, MEMORY: 0}),
)


def apart(function: Callable[[int], dict[str, float]], values: range | tuple[int, ...]) -> list[dict[str, float]]:
    """Call a function for all values at once, each in a forked process; add the memory that the process took.

    That is the largest it had beyond what it began with.
    """

    def child(value: int, sender: Connection) -> None:
        torch.set_num_threads(1)
        before = _memory("VmRSS")
        found = function(value)
        sender.send({MEMORY: _memory("VmHWM") - before, **found})

    context = multiprocessing.get_context("fork")
    started = []
    for value in values:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=child, args=(value, sender))
        process.start()
        sender.close()
        started.append((process, receiver))
    try:
        return [receiver.recv() for _, receiver in started]
    finally:
        for process, _ in started:
            process.join()


def _memory(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def slope(points: tuple[int, ...], values: list[float]) -> float:
    """Return the slope between the last two points of a log-log plot."""
    return math.log(values[-1] / values[-2]) / math.log(points[-1] / points[-2])


def draw(found: dict[str, Any], base: Path) -> None:
    """Draw all columns against what grows, over their value at the first point."""
    from matplotlib.ticker import LogLocator, NullFormatter

    def fill(figure: Any) -> None:
        figure.set_size_inches(8.4, 5.6)
        # The last of six panels is left for the legend.
        for axes, (name, axis) in zip(figure.subplots(2, 3).flat, found.items(), strict=False):
            for column, values in axis["columns"].items():
                style = {"color": COLOURS[1 + COLUMNS.index(column)], "marker": "o", "markersize": 4}
                axes.plot(axis["points"], [value / values[0] for value in values], label=column, **style)
            axes.set(xscale="log", yscale="log", xlabel=name, ylabel="times the first")
            axes.set_ylim(min(axes.get_ylim()[0], 0.5), max(axes.get_ylim()[1], 5))
            axes.set_xticks(axis["points"], [f"{point:,}" for point in axis["points"]])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            for each in (axes.xaxis, axes.yaxis):
                each.set_minor_formatter(NullFormatter())
        figure.axes[-1].set_axis_off()
        draw_legend(figure)

    slopes = "; ".join(f"{name}: {', '.join(map(str, axis['slope'].values()))}" for name, axis in found.items())
    save_picture(
        base, fill, title="How cost grows", caption="", alt=f"Log-log plots of cost. Slopes at the end: {slopes}."
    )


def main() -> None:
    """Measure every axis, say where it grows faster than it should, and write JSON and figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; the figure lies beside it")
    parser.add_argument("--few", action="store_true", help="the first two points of each axis alone, to try it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started, found, broken = time.perf_counter(), dict[str, Any](), list[str]()
    for axis in AXES:
        points = axis.points[:2] if given.few else axis.points
        measured = [apart(axis.measure, (point,))[0] for point in points]
        columns = {name: [round(one[name], 3) for one in measured] for name in axis.most}
        slopes = {name: round(slope(points, values), 2) for name, values in columns.items()}
        found[axis.name] = {"points": points, "columns": columns, "slope": slopes, "most": axis.most}
        broken += [
            f"{axis.name}: {name} grows with slope {slopes[name]}, at most {most} is expected"
            for name, most in axis.most.items()
            if slopes[name] > most + TOLERANCE
        ]
    write("growth", {"seconds": round(time.perf_counter() - started), "axes": found, "broken": broken}, given.out)
    if given.out is not None:
        draw(found, given.out.with_suffix(""))


if __name__ == "__main__":
    main()
