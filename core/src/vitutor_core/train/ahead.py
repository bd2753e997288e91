"""Store the teachers' logits of a run's batches before it, or on a machine that is better at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vitutor_core.distill.taught import TaughtLoader, expected_bytes
from vitutor_core.distributed import processes
from vitutor_core.errors import ConfigError
from vitutor_core.schema import RunConfig
from vitutor_core.train.method import Clock
from vitutor_core.train.session import BuildMethod, opened


def store_logits(
    config: RunConfig,
    build_method: BuildMethod,
    *,
    starting: Callable[[int, float], None],
    epoch_done: Callable[[int], None],
) -> dict[str, Any]:
    """Go through all batches that ``config`` trains on and store what its teachers say; return how many epochs.

    ``starting`` is told the number of epochs and the GB to be stored, ``epoch_done`` each epoch; epochs that are there
    already are only read. Raises `ConfigError` where there is nothing to store.
    """
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    with processes(config.runtime.device) as group, opened(config, build_method, group) as (data, method):
        if not isinstance(data.train, TaughtLoader):
            raise ConfigError("nothing to store: set cache.folder, and choose a row with a teacher of logits")
        updates = data.train.steps_per_epoch
        size = expected_bytes(config, updates, group.world_size, data.info.num_classes) * group.world_size
        starting(config.train.epochs, size * len(method.logit_teachers()) / 1e9)
        for epoch in range(config.train.epochs):
            method.on_epoch(Clock(epoch * updates, updates, config.train.epochs * updates))
            if not method.logit_teachers():
                break
            for _ in data.train.epoch(epoch):
                pass
            epoch_done(epoch)
        return data.train.facts
