"""A data set of noise with the shapes of a config's, so that a step can be measured without images."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from vitutor_core.data.types import Batch, Data, DataInfo, never
from vitutor_core.schema import RunConfig

CLASSES = 100


class FixedBatches:
    """A training loader that gives the same batches in every epoch."""

    def __init__(self, batches: list[tuple[Batch, ...]]) -> None:
        self._batches = batches
        self.steps_per_epoch = len(batches)

    def epoch(
        self, epoch: int, *, start_step: int = 0, give_up: Callable[[], bool] = never
    ) -> Iterator[tuple[Batch, ...]]:
        yield from self._batches[start_step:]

    def close(self) -> None:
        """Do nothing: there are no workers."""


def synthetic_info(config: RunConfig) -> DataInfo:
    """Describe images of the config's size, of `CLASSES` classes."""
    classes = tuple(map(str, range(CLASSES)))
    return DataInfo("noise", classes, config.data.image_size, 3, (0.5,) * 3, (0.25,) * 3, 50_000, 0, "noise")


def synthetic(config: RunConfig, device: torch.device, *, updates: int = 4) -> Data:
    """Return a few batches of noise as a data set; targets are soft where the config mixes images."""
    generator = torch.Generator().manual_seed(0)
    batch, side = config.train.batch_size, config.data.image_size
    mixed = bool(config.augment.mixup or config.augment.cutmix or config.augment.label_smoothing)
    batches: list[tuple[Batch, ...]] = []
    for _ in range(updates):
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        targets = torch.nn.functional.one_hot(labels, CLASSES).float() if mixed else labels
        images = torch.randn(batch, 3, side, side, generator=generator)
        batches.append((Batch(images.to(device), targets.to(device), torch.arange(batch, device=device)),))
    return Data(synthetic_info(config), FixedBatches(batches), ())
