"""Plain supervised training of any timm model: how teachers and baselines are made."""

from __future__ import annotations

from typing import Self

from torch import nn
from torch.nn import functional as F

from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.models.weights import create_student
from vitutor_core.schema import RunConfig
from vitutor_core.train.method import Clock, Method, StepOutput


class Supervised(Method):
    """Cross-entropy between the student's logits and the (hard or soft) targets."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    @classmethod
    def build(cls, config: RunConfig, info: DataInfo) -> Self:
        """Build the model that ``config.student`` names, for the data's classes and size."""
        return cls(create_student(config.student, info))

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        loss = F.cross_entropy(self.student(batch.images), batch.targets)
        return StepOutput(loss)
