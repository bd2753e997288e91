"""All parts of the benchmark, in an order, within a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vitutor_core.bench import SHARES, gpu, limits, loaders, plain
from vitutor_core.bench import methods as of_methods
from vitutor_core.bench.methods import Subject
from vitutor_core.bench.result import Result
from vitutor_core.bench.timing import Budget
from vitutor_core.distributed import Processes
from vitutor_core.errors import ConfigError
from vitutor_core.schema import RunConfig
from vitutor_core.train.memory import is_out_of_memory

_GPU = ("host and kernels", "several GPUs")
_SIZES = {
    "digits": (16, 16, {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}),
    "scenes": (16, 32, {"patch_size": 4, "embed_dim": 48, "depth": 4, "num_heads": 4}),
    "small": (32, 32, {"patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}),
    "cifar100": (32, 128, {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3}),
    "imagenet": (224, 512, {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6}),
}
"""Side of the images, batch, and shape of the ViT."""


def plain_config(scale: str, device: torch.device) -> RunConfig:
    """Return a plain ViT of about the size of a scale's students; on a GPU in bf16."""
    side, batch, shape = _SIZES[scale]
    precision = "bf16" if device.type == "cuda" else "fp32"
    values = {
        "data": {"image_size": side},
        "augment": {"pad_crop": side // 8, "flip": 0.5},
        "student": {"name": "vit_tiny_patch16_224", "kwargs": shape},
        "optim": {"lr": 1e-3, "clip_norm": 1.0, "schedule_unit": "update"},
        "train": {"epochs": 1000, "batch_size": batch, "precision": precision},
    }
    return RunConfig.from_mapping(values, where="bench")


def run(
    scale: str,
    subjects: Sequence[Subject],
    processes: Processes,
    *,
    minutes: float,
    launch: gpu.Launch,
    only: Sequence[str] = (),
    begin: Callable[[str, float], None] = lambda part, seconds: None,
) -> dict[str, Result]:
    """Run the parts ``only``, or all that the device has, in about ``minutes``.

    ``launch`` starts several processes; ``begin`` is told each part and its seconds. Raises `VitutorError` where what
    claims to give the same does not, and `ConfigError` for a part that needs a GPU.
    """
    device, config = processes.device, plain_config(scale, processes.device)
    possible = [part for part in SHARES if device.type == "cuda" or part not in _GPU]
    for part in only:
        if part not in possible:
            raise ConfigError(f"--only '{part}': needs a GPU; see --device")
    chosen = [part for part in possible if part in (only or possible)]
    budget = Budget(minutes * 60, {part: SHARES[part] for part in chosen})
    parts: dict[str, Callable[[float], Result]] = {
        "limits": lambda seconds: limits.roofline(config, processes, seconds),
        "plain step": lambda seconds: plain.steps(config, processes, seconds),
        "waiting for data": lambda seconds: plain.waiting(config, made(), processes, seconds),
        "resident loader": lambda seconds: loaders.resident(device, seconds),
        "streamed loader": lambda seconds: loaders.streamed(device, seconds),
        "methods": lambda seconds: of_methods.methods(subjects, processes, seconds),
        "teachers": lambda seconds: of_methods.teachers(subjects, processes, seconds),
        "host and kernels": lambda _: gpu.queue(subjects, config, made(), processes),
        "several GPUs": lambda seconds: gpu.scaling(config, seconds, launch),
    }

    def made() -> Any:
        return loaders.resident_loader(config, device)

    results = {}
    for part in chosen:
        seconds = budget.take(part)
        begin(part, seconds)
        try:
            results[part] = parts[part](seconds)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            results[part] = Result(skipped={part: f"out of memory at scale {scale}; choose a smaller --scale"})
    return results
