"""What to change where memory ran out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from vitutor_core.errors import ResourceError
from vitutor_core.schema import RunConfig


@contextlib.contextmanager
def advise_for_training(config: RunConfig, device: torch.device) -> Iterator[None]:
    """Turn running out of memory into a `ResourceError` that names the field of training to change."""
    train = config.train
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        _raise_if_other(error)
        peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        raise ResourceError(
            f"out of memory with batch {train.batch_size}, {config.data.image_size} px, {train.precision}, "
            f"peak {peak:.1f} GiB; train.accumulate={2 * train.accumulate} halves the memory and keeps the effective "
            "batch, in a new --out"
        ) from None


@contextlib.contextmanager
def advise_for_evaluation(config: RunConfig) -> Iterator[None]:
    """Turn running out of memory into a `ResourceError` that names the field of evaluation to change."""
    batch = config.runtime.eval_batch_size
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        _raise_if_other(error)
        raise ResourceError(
            f"out of memory in the evaluation, with batches of {batch} images; go on with "
            f"--set runtime.eval_batch_size={max(batch // 2, 1)}, which changes no result"
        ) from None


def _raise_if_other(error: Exception) -> None:
    # On a CPU, torch says so in a plain RuntimeError.
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "DefaultCPUAllocator" not in str(error):
        raise error
