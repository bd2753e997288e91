"""Teachers' logits of training batches, kept for the next run on the same batches.

A batch is a pure function of (data, augmentation, seed of the views, epoch, step, rank), so what a teacher says of it
is found again without the images: as a row range in one file per epoch. Runs that share all of that, such as the rows
of a table, or several seeds with one `data.view_seed`, pay for one pass of the teacher. Mixed images are no exception.
Whole logits in fp32 are bit-equal to the teacher's; fp16 and top-k say how far they are from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitutor_core.config import fingerprinted_fields
from vitutor_core.data.types import Batch, Data, DataInfo, TrainLoader, never
from vitutor_core.distill.logits import LogitStore, decode, encode
from vitutor_core.distill.teacher import FrozenTeacher
from vitutor_core.distributed import Processes, effective_precision
from vitutor_core.schema import CacheConfig, RunConfig

Teachers = Callable[[], Mapping[str, FrozenTeacher]]
_OF_BATCHES = (
    "data.",
    "augment.",
    "cache.",
    "train.batch_size",
    "train.accumulate",
    "train.epoch_length",
    "train.precision",
)
"""Fields that decide the batches, the precision of a teacher's pass and the form in which its logits are stored."""


class TaughtLoader:
    """A training loader whose batches carry the teachers' logits: stored ones, else computed here and then stored.

    ``teachers`` is asked at the start of every epoch, for teachers may leave; ``autocast`` is the context in which
    the method runs them.
    """

    def __init__(
        self,
        loader: TrainLoader,
        teachers: Teachers,
        store: Callable[[FrozenTeacher], LogitStore],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self._loader, self._teachers, self._store, self._autocast = loader, teachers, store, autocast
        self.steps_per_epoch = loader.steps_per_epoch
        self.facts: dict[str, Any] = {"epochs_read": 0, "epochs_written": 0, "epochs_computed": 0, "divergence": 0.0}

    def epoch(
        self, epoch: int, *, start_step: int = 0, give_up: Callable[[], bool] = never
    ) -> Iterator[tuple[Batch, ...]]:
        """Yield the loader's micro-batches; an epoch that is run from its start is stored at its end."""
        teachers = self._teachers()
        stores = {role: self._store(teacher) for role, teacher in teachers.items()}
        stored = {role: found for role, store in stores.items() if (found := store.read(epoch)) is not None}
        fresh = {role: _Fresh(stores[role].config) for role in teachers if role not in stored}
        batches = self._loader.epoch(epoch, start_step=start_step, give_up=give_up)
        for step, micro_batches in enumerate(batches, start_step):
            taught = []
            for number, batch in enumerate(micro_batches):
                size = len(batch.images)
                start = (step * len(micro_batches) + number) * size
                logits = {role: own.rows(start, start + size, batch.images.device) for role, own in stored.items()}
                for role, own in fresh.items():
                    logits[role] = self._ask(teachers[role], batch, own)
                taught.append(batch._replace(taught=logits))
            yield tuple(taught)
        for role, own in fresh.items():
            tensors, divergence = own.joined()
            was_written = start_step == 0 and stores[role].write(epoch, tensors, divergence)
            self._count("epochs_written" if was_written else "epochs_computed", divergence)
        for found in stored.values():
            self._count("epochs_read", found.divergence)

    def close(self) -> None:
        """Shut the loader's workers down."""
        self._loader.close()

    def _ask(self, teacher: FrozenTeacher, batch: Batch, fresh: _Fresh) -> Tensor:
        with self._autocast():
            logits = teacher(batch.images).logits.float()
        return fresh.add(logits)

    def _count(self, name: str, divergence: float) -> None:
        self.facts[name] += 1
        self.facts["divergence"] = max(self.facts["divergence"], divergence)


class _Fresh:
    """The logits of an epoch that is not stored yet, in the form in which they will be."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        self._parts: list[dict[str, Tensor]] = []
        self._divergence: list[Tensor] = []

    def add(self, logits: Tensor) -> Tensor:
        """Keep logits (B, K) and return them as a later run will read them."""
        part = encode(logits, self._config)
        self._parts.append(part)
        if self._config.is_exact:
            return logits
        found = decode(part, logits.shape[1])
        self._divergence.append(
            F.kl_div(found.log_softmax(1), logits.log_softmax(1), log_target=True, reduction="batchmean")
        )
        return found

    def joined(self) -> tuple[dict[str, Tensor], float]:
        """Return the whole epoch, and its mean divergence from the teacher."""
        tensors = {name: torch.cat([part[name] for part in self._parts]).cpu() for name in self._parts[0]}
        return tensors, float(torch.stack(self._divergence).mean()) if self._divergence else 0.0


def stream_key(
    config: RunConfig, info: DataInfo, teacher: FrozenTeacher, rank: tuple[int, int], device: str
) -> dict[str, Any]:
    """Return all that decides a teacher's logits over a run's batches; ``rank``: rank and number of processes."""
    fields = fingerprinted_fields(config)
    del fields["data.view_seed"]  # null and the run's own seed are the same
    return {
        "teacher": teacher.facts["sha256"],
        "input": teacher.input,
        "data": info.fingerprint,
        "view_seed": config.view_seed,
        "place": rank,
        "computed": [device, torch.__version__],
        **{path: value for path, value in fields.items() if path.startswith(_OF_BATCHES)},
    }


def expected_bytes(config: RunConfig, steps_per_epoch: int, world_size: int, num_classes: int) -> int:
    """Return how much a process stores of one teacher over all epochs."""
    width = 2 if config.cache.dtype == "fp16" else 4
    per_image = num_classes * width
    if config.cache.top_k is not None and config.cache.top_k < num_classes:
        per_image = config.cache.top_k * (width + 4) + width
    return config.train.epochs * steps_per_epoch * (config.train.batch_size // world_size) * per_image


def with_stored_logits(data: Data, teachers: Teachers, config: RunConfig, processes: Processes) -> Data:
    """Return the data with batches that carry the teachers' logits, where ``cache.folder`` says so."""
    if config.cache.folder is None or not teachers():
        return data
    rank, device = (processes.rank, processes.world_size), processes.device

    def store(teacher: FrozenTeacher) -> LogitStore:
        return LogitStore(
            config.cache, stream_key(config, data.info, teacher, rank, device.type), data.info.num_classes
        )

    def autocast() -> torch.autocast:
        bf16 = effective_precision(config.train.precision, device) == "bf16"
        return torch.autocast(device.type, torch.bfloat16, enabled=bf16)

    return dataclasses.replace(data, train=TaughtLoader(data.train, teachers, store, autocast))
