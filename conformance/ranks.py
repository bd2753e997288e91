"""Two gloo processes that make one step on different images and compare their gradients."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from vitutor_core.data.build import build_data
from vitutor_core.distributed import Processes
from vitutor_core.train.method import Clock


def gradient_gap(method: str, config: Any, folder: Path) -> tuple[float, float]:
    """Return the largest gradient difference between two ranks after one step, and the gradients' norm."""
    mp.spawn(_rank, args=(method, config, str(folder)), nprocs=2)
    first, second = (load_file(folder / f"rank-{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    gap = max(float((first[name] - second[name]).abs().max()) for name in first)
    return gap, float(torch.stack([value.norm() for value in first.values()]).norm())


def _rank(rank: int, method_name: str, config: Any, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    processes = Processes(rank, 2, torch.device("cpu"))
    data = build_data(config, device=processes.device, rank=rank, world_size=2)
    module, _, name = method_name.partition(":")
    torch.manual_seed(config.seed)
    method = getattr(importlib.import_module(module), name).build(config, data.info)
    method.train()
    step = processes.wrap(method)
    (batch,) = next(iter(data.train.epoch(0)))
    step(batch, Clock(0, data.train.steps_per_epoch, data.train.steps_per_epoch)).loss.backward()
    gradients = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
    save_file(gradients, f"{folder}/rank-{rank}.safetensors")
    data.train.close()
    dist.destroy_process_group()
