"""The loop's step against a bare timm training step: the same ViT, the same images, the same optimiser.

python -m benchmarks.step [--out FILE]

The bare step is what one would write by hand: forward, loss, backward, clip, update, schedule. Ours adds keyed
seeding, finite checks, and the sums for the log. Also: how long a step waits for the resident loader.
"""

from __future__ import annotations

import statistics
import time

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

from benchmarks.record import interleave, ratio, report
from vitutor_core.data.build import build_data
from vitutor_core.distributed import Processes
from vitutor_core.schema import RunConfig
from vitutor_core.train.guard import FiniteGuard
from vitutor_core.train.meter import Meter
from vitutor_core.train.method import Clock
from vitutor_core.train.state import TrainState
from vitutor_core.train.supervised import Supervised
from vitutor_core.train.update import Updater

CONFIG = RunConfig.from_mapping(
    {
        "data": {"image_size": 16},
        "augment": {"pad_crop": 2},
        "student": {
            "name": "vit_tiny_patch16_224",
            "kwargs": {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
        },
        "optim": {"lr": 1e-3, "clip_norm": 1.0, "schedule_unit": "update"},
        "train": {"epochs": 100, "batch_size": 64},
    },
    where="benchmark",
)


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    processes = Processes(0, 1, torch.device("cpu"))
    data = build_data(CONFIG, device=processes.device)
    updates = data.train.steps_per_epoch
    total = updates * CONFIG.train.epochs

    method = Supervised.build(CONFIG, data.info)
    state = TrainState.build(method, CONFIG, None, Clock(0, updates, total), {"method": "benchmark"})
    guard, meter = FiniteGuard(state.optimizer, processes.device), Meter(processes, {})
    updater = Updater(method, CONFIG, processes, state, guard, meter)
    method.train()

    bare = Supervised.build(CONFIG, data.info).student.train()
    optimizer = create_optimizer_v2(bare, "adamw", lr=1e-3, weight_decay=0.05, fused=True)
    schedule, _ = create_scheduler_v2(optimizer, num_epochs=100, step_on_epochs=False, updates_per_epoch=updates)

    epochs = (batch for epoch in range(10_000) for batch in data.train.epoch(epoch))
    waits: list[float] = []
    micro_batches = next(epochs)

    def ours() -> None:
        updater.update(micro_batches, Clock(state.step, updates, total))

    def by_hand() -> None:
        nonlocal micro_batches
        images, targets, _ = micro_batches[0]
        loss = F.cross_entropy(bare(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
        optimizer.step()
        schedule.step_update(state.step)
        loss.item()  # timm's script reads the loss in every step

    def wait() -> None:
        nonlocal micro_batches
        started = time.perf_counter()
        micro_batches = next(epochs)
        waits.append(time.perf_counter() - started)

    for _ in range(10 * updates):
        wait()
    wait_s = statistics.fmean(waits)  # the loader prepares several batches at once, so a median would say nothing
    first, second = interleave(ours, by_hand, rounds=300)
    figures = ratio(first, second)
    report(
        "training step",
        {
            "ours_ms": figures["first_ms"],
            "by_hand_ms": figures["second_ms"],
            "ratio": figures["ratio"],
            "data_wait_ms": wait_s * 1e3,
            "data_wait_share": wait_s / statistics.median(first),
        },
    )


if __name__ == "__main__":
    main()
