"""What the machine can do at most, and how near a training step comes to it: products of matrices, and copies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitutor_core.bench.driven import Driven
from vitutor_core.bench.result import Result
from vitutor_core.bench.synthetic import synthetic
from vitutor_core.bench.timing import wait_for
from vitutor_core.distributed import Processes, effective_precision
from vitutor_core.schema import RunConfig
from vitutor_core.train.supervised import Supervised

_MOVES = 96
"""Elements of a token's width that a layer reads or writes in a step, forward and backward, with fused operations."""


def roofline(config: RunConfig, processes: Processes, seconds: float) -> Result:
    """Measure a product of matrices, a copy, and the plain step; return rates and the step's share of the limit.

    The limit of a step is the longer of its operations at the product's rate and its bytes at the copy's.
    """
    result, device = Result(), processes.device
    half = effective_precision(config.train.precision, device) == "bf16"
    on_gpu = device.type == "cuda"
    side, elements = (8192, 2**28) if on_gpu else (1024, 2**24)
    dtype = torch.bfloat16 if half else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(elements, device=device)
    target = torch.empty_like(source)
    product_s = _seconds(lambda: torch.mm(a, b), device, seconds / 4)
    copy_s = _seconds(lambda: target.copy_(source), device, seconds / 4)
    ours = Driven(config, Supervised.build, synthetic(config, device), processes)
    (batches, *_) = ours.data.train.epoch(0)
    with FlopCounterMode(display=False) as counted:
        ours.update(batches)
    step_s = _seconds(lambda: ours.update(batches), device, seconds / 2)
    flops, rate = counted.get_total_flops(), 2 * side**3 / product_s
    bandwidth = 2 * 4 * elements / copy_s
    moved = _bytes_of(ours.method.student, config, 2 if half else 4)
    limit = max(flops / rate, moved / bandwidth)
    result.figures = {
        "product of matrices, GFLOP/s": rate / 1e9,
        "copy, GB/s": bandwidth / 1e9,
        "plain step, GFLOP": flops / 1e9,
        "plain step, images/s": config.train.batch_size / step_s,
        "plain step, share of the product's rate": flops / step_s / rate,
        "plain step, share of its limit": limit / step_s,
    }
    return result


def _bytes_of(vit: Any, config: RunConfig, width: int) -> float:
    """Estimate the bytes that a step of a plain ViT moves."""
    tokens = vit.pos_embed.shape[1]
    return float(_MOVES * vit.embed_dim * tokens * len(vit.blocks) * width * config.train.batch_size)


def _seconds(function: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the median time of a call over ``seconds``, at least three calls after one that warms up."""
    times: list[float] = []
    deadline = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < deadline:
        started = time.perf_counter()
        function()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])
