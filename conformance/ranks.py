"""Updates by two gloo processes, and by one: what gradients they leave."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from conformance import forked
from vitutor_core.data.build import build_data
from vitutor_core.distributed import Processes
from vitutor_core.train import optim
from vitutor_core.train.method import Clock
from vitutor_core.train.state import TrainState
from vitutor_core.train.update import Updater

Gradients = dict[str, Tensor]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Found:
    """The gradients of each parameter, zero where it got none, and the loss, under the empty name.

    ``own`` are those of two processes with a share of the images each, ``same`` those of two with the same images and
    random numbers, and ``alone`` those of one process with them.
    """

    own: tuple[Gradients, Gradients]
    same: tuple[Gradients, Gradients]
    alone: Gradients


def gradients(method: str, config: Any, folder: Path) -> Found:
    """Make two updates of the second epoch, as the loop makes them, and return the gradients of the second."""
    forked.together(_rank, method, config, str(folder))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = _updates(method, config, Processes(0, 1, _CPU), share=0)
    finally:
        torch.set_num_threads(threads)
    own, same = ([load_file(folder / f"{kind}-{rank}.safetensors") for rank in range(2)] for kind in ("own", "same"))
    return Found((own[0], own[1]), (same[0], same[1]), alone)


def _rank(rank: int, method: str, config: Any, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    # The loop draws its random numbers by the rank that it is given, DDP goes by torch's.
    for kind, given in (("own", rank), ("same", 0)):
        found = _updates(method, config, Processes(given, 2, _CPU), share=given)
        save_file(found, f"{folder}/{kind}-{rank}.safetensors")
    dist.destroy_process_group()


def _updates(method_name: str, config: Any, processes: Processes, *, share: int) -> Gradients:
    module, _, name = method_name.partition(":")
    data = build_data(config, device=_CPU, rank=share, world_size=2)
    torch.manual_seed(config.seed)
    method = getattr(importlib.import_module(module), name).build(config, data.info).train()
    optimizer = optim.build_optimizer(method, config.optim, config.train.batch_size)
    updates = data.train.steps_per_epoch
    schedule = optim.build_schedule(optimizer, config.optim, config.train.epochs, updates)
    state = TrainState(optimizer, schedule, None, {})
    updater = Updater(method, config, processes, state)
    # The second epoch and its second update: weights of terms have risen, and what starts at zero has moved.
    method.on_epoch(Clock(updates, updates, updates * config.train.epochs))
    for step, micro_batches in zip(range(updates, updates + 2), data.train.epoch(1), strict=False):
        updater.update(micro_batches, Clock(step, updates, updates * config.train.epochs))
    data.train.close()
    trained = {name: own for name, own in method.named_parameters() if own.requires_grad}
    found = {name: torch.zeros(()) if own.grad is None else own.grad.clone() for name, own in trained.items()}
    return found | {"": updater.meter.recent[-1].clone()}
