"""One process or several: `torchrun` starts them, plain torch DDP keeps their gradients equal."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitutor_core.errors import ConfigError, VitutorError

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes that work together."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; with one process it stays as it is."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, *, even: bool = False) -> Tensor:
    """Return the rows of all processes, (sum of n, ...), in the order of their ranks; ``rows`` is this one's (n, ...).

    The processes may have different numbers of rows; if there are as many everywhere, ``even`` saves a wait for the
    device. No gradient flows back.
    """
    rank, size = world()
    if size == 1:
        return rows
    if even:
        parts = [torch.empty_like(rows) for _ in range(size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)
    counts = torch.zeros(size, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros((int(counts.max()), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded)
    return torch.cat([part[:number] for part, number in zip(parts, counts.tolist(), strict=True)])


def synchronise_batch_norm(module: ModuleT) -> ModuleT:
    """Let BatchNorm see the batches of all processes, where they compute on GPUs: torch has it for these alone."""
    if world()[1] == 1 or dist.get_backend() != "nccl":
        return module
    synchronised: ModuleT = convert_sync_batchnorm(module)  # timm's keeps the activation of its own BatchNorm
    return synchronised


@dataclass(frozen=True)
class Processes:
    """This process's place among all: ``rank`` of ``world_size``, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is set in any process; all must call it at the same point."""
        if self.world_size == 1:
            return flag
        return bool(sum_over_processes(torch.tensor([float(flag)], device=self.device)).item())

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world_size > 1:
            dist.barrier()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wrap a method so that its gradients are averaged over the processes."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; raises `ConfigError` where there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"runtime.device: '{name}' is not a device; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        index = device.index if device.index is not None else local_rank
        if index >= torch.cuda.device_count():
            raise ConfigError(f"runtime.device: {name} asked for, {torch.cuda.device_count()} CUDA devices found")
        return torch.device("cuda", index)
    return device


def effective_precision(precision: Literal["fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Return the precision to compute in: bf16 is for GPUs, most CPUs emulate it several times slower than fp32."""
    return precision if device.type == "cuda" else "fp32"


@contextlib.contextmanager
def processes(device_name: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, if it did; the group is left when this process ends.

    Raises `VitutorError` where another process has ended, which says why itself.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    try:
        if not dist.is_initialized():
            # Once per process, also for several runs (a teacher, then its student): joining anew would meet the
            # addresses that the first time left in the store, and wait for ever.
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        yield Processes(dist.get_rank(), world_size, device)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise VitutorError(
            f"process {os.environ.get('RANK', '?')} of {world_size}: another process of this run has ended, and its "
            "own message says why; --debug shows what was lost here"
        ) from error
