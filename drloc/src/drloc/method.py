"""DRLoc (Liu et al., NeurIPS 2021, arXiv 2106.03746), section 3: L = L_CE + lambda * L_drloc."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from drloc.config import DRLocConfig
from drloc.localise import DRLoc
from drloc.schedule import loss_weight
from vitutor_core.data import keyed
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.models.weights import create_student
from vitutor_core.train.method import Clock, Method, StepOutput

PAIRS = "pairs"
"""The name of the pairs among what is drawn for a batch."""
_STREAM = 0xD21C
"""Tells the draws of pairs from others with the same seed."""


class DRLocMethod(Method):
    """The student and, unless the weight is 0, the heads beside it.

    With a weight of 0 this is plain supervised training, the baseline of the paper's tables: the same initial weights,
    batches and dropout, since the heads are made after the student and the pairs have a generator of their own.
    """

    def __init__(self, student: nn.Module, config: DRLocConfig, *, drloc: DRLoc | None = None) -> None:
        super().__init__()
        self.student = student
        self.drloc = drloc
        self._terms = config.method
        self._total_epochs = config.train.schedule_epochs or config.train.epochs

    @classmethod
    def build(cls, config: DRLocConfig, info: DataInfo) -> Self:
        """Build student and heads for the data at hand; raises `ConfigError` where the student has no such grid."""
        student = create_student(config.student, info)
        if config.method.weight == 0:
            return cls(student, config)
        size = (info.channels, info.image_size, info.image_size)
        return cls(student, config, drloc=DRLoc(student, config.method, input_size=size))

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        return batch if self.drloc is None else with_pairs(batch, self.drloc)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        if self.drloc is None:
            loss = F.cross_entropy(self.student(batch.images), batch.targets)
            return StepOutput(loss, parts={"label_loss": loss})
        output = self.drloc(self.student, batch.images, pairs=batch.drawn[PAIRS])
        label = F.cross_entropy(output.logits, batch.targets)
        terms = self._terms
        weight = loss_weight(
            terms.weight,
            clock.epoch,
            schedule=terms.weight_schedule,
            warmup_epochs=terms.warmup_epochs,
            total_epochs=self._total_epochs,
        )
        parts = {"label_loss": label, "drloc_loss": output.loss, "drloc_cells": output.error}
        return StepOutput(label + weight * output.loss, parts=parts)


def with_pairs(batch: Batch, drloc: DRLoc) -> Batch:
    """Return the batch with the pairs of its images, which `step_generator` draws."""
    images = batch.images
    pairs = drloc.draw(len(images), images.device, step_generator(images.device))
    return batch._replace(drawn={**batch.drawn, PAIRS: pairs})


def step_generator(device: torch.device) -> torch.Generator:
    """Return a generator that depends on the seed of the current step alone; torch's own stays where it is.

    The loop seeds torch anew for every micro-batch of every process, so this resumes bit for bit.
    """
    generator = torch.Generator(device)
    return generator.manual_seed(keyed.seed_from(torch.initial_seed(), _STREAM))
