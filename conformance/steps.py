"""What torch sees in a step: graphs that are compiled, values that the host reads, tensors that are made on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vitutor_core.bench.driven import Driven
from vitutor_core.distributed import Processes
from vitutor_core.schema import RunConfig
from vitutor_core.train.state import TrainState
from vitutor_core.train.update import Updater

READS = frozenset(
    {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "bincount"}
    | {"_unique", "_unique2", "unique_dim", "unique_consecutive", "allclose", "argwhere"}
)
"""Operators whose result, or its shape, the host has to wait for on an accelerator."""


class HostRead(AssertionError):
    """A step waits for the device."""


class MadeOnHost(AssertionError):
    """A step on an accelerator makes a tensor on the host, which no CUDA graph can replay."""


class NoHostReads(TorchDispatchMode):
    """Raises `HostRead` where an operator would make the host wait for an accelerator, whatever the device is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in {"index", "index_put", "index_put_"} else ()
        by_mask = any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in indices)
        repeats = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None and len(args) == 1
        if name in READS or by_mask or repeats:
            raise HostRead(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


class NothingFromHost(TorchFunctionMode):
    """Raises `MadeOnHost` where values of the host become a tensor, which no operator shows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, torch.Tensor.new_tensor}:
            raise MadeOnHost(f"torch.{func.__name__} copies from the host; use torch.full or new_full")
        return func(*args, **(kwargs or {}))


class NothingOnHost(TorchDispatchMode):
    """Raises `MadeOnHost` where an operator's result lies on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(result)):
            raise MadeOnHost(f"{func} makes a tensor on the host")
        return result


class Graphs:
    """A backend that runs graphs as they are and counts them; one is captured anew each time that a guard fails."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@contextmanager
def captured_whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Let torch.compile count graphs in place of compiling them, and raise where one would be broken."""
    graphs, compile_ = Graphs(), torch.compile
    torch._dynamo.reset()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "compile", lambda module: compile_(module, backend=graphs, fullgraph=True))
        yield graphs
    torch._dynamo.reset()


def drive_on_meta(driven: Driven, config: RunConfig, *, steps: int = 2) -> None:
    """Make updates of shapes alone, on torch's meta device; raises where a step makes a tensor on the CPU.

    Batches are prepared before, since what a method draws on the host has its place there.
    """
    method, meta = driven.method, torch.device("meta")
    batches = [batches for batches, _ in zip(driven.data.train.epoch(0), range(steps), strict=False)]
    prepared = [tuple(method.prepare(batch, driven.clock) for batch in of_step) for of_step in batches]
    method.prepare = lambda batch, _: batch
    state = TrainState.build(method.to(meta), config, None, driven.clock, {})
    state.optimizer.step = lambda: None  # torch's fused update is not for meta; it counts its steps on the device
    processes = Processes(0, 1, meta)
    updater = Updater(method, config, processes, state)
    updater.guard.deferred = True  # as on a GPU
    for of_step in prepared:
        moved = tuple(tree_map_only(torch.Tensor, lambda tensor: tensor.to(meta), batch) for batch in of_step)
        with pytest.MonkeyPatch.context() as patch, NothingFromHost(), NothingOnHost(), NoHostReads():
            patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
            updater.update(moved, driven.clock)
