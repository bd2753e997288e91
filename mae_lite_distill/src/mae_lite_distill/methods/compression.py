"""Compression of a contrastive teacher into a small encoder without labels (SEED, arXiv 2101.04731), for Table 2."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mae_lite_distill.config import CompressionConfig, MAELiteConfig
from mae_lite_distill.losses import similarity_loss
from mae_lite_distill.methods.pretraining import Pretraining
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill.teacher import FrozenTeacher, load_teacher
from vitutor_core.distributed import gather_rows
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_student
from vitutor_core.train.method import Clock, StepOutput


class Compression(Pretraining):
    """The encoder to be published, its projector, the queue of the teacher's features, and the teacher.

    The queue is in the checkpoint. It holds the features of the last images of all processes, at the start random ones.
    """

    queue: Tensor

    def __init__(self, student: nn.Module, config: CompressionConfig, teacher: FrozenTeacher) -> None:
        super().__init__(student)
        width, features = _width(self.student, "student"), _width(teacher.model, "teacher")
        self.projector = nn.Sequential(
            nn.Linear(width, config.hidden), nn.ReLU(inplace=True), nn.Linear(config.hidden, features)
        )
        self.register_buffer("queue", F.normalize(torch.randn(config.queue, features), dim=1))
        self._config = config
        self._teacher = teacher

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build the student and load the teacher; raises `ConfigError` where there is none."""
        if config.teacher is None:
            raise ConfigError("method.objective=compress: needs a teacher")
        student = create_student(config.student, info)
        return cls(student, config.compress, load_teacher(config.teacher, info, reads_logits=False))

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        theirs = self._taught(batch.images)
        # A copy, because backward needs the queue as it is here.
        queue = self.queue.clone()
        loss = similarity_loss(
            self.projector(self._features(batch.images)),
            theirs,
            queue,
            student_temperature=self._config.student_temperature,
            teacher_temperature=self._config.teacher_temperature,
        )
        newest = gather_rows(F.normalize(theirs.float(), dim=1), even=True)
        self.queue.copy_(torch.cat([newest, queue])[: len(queue)])
        return StepOutput(loss, parts={"similarity_loss": loss})

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor:
        """Return the teacher's features (B, C) of the student's images."""
        model: Any = self._teacher.model
        if model.training:
            raise ValueError("the teacher was put into training mode")
        features: Tensor = model.forward_head(model.forward_features(self._teacher.adapt(images)), pre_logits=True)
        return features

    def teachers(self) -> dict[str, dict[str, Any]]:
        return {"moco": self._teacher.facts}


def _width(model: Any, where: str) -> int:
    """Return how many features a model's classifier reads: in some CNNs more than the last block puts out."""
    width = getattr(model, "head_hidden_size", None)
    if not isinstance(width, int):
        raise ConfigError(
            f"{where}: {type(model).__name__} does not say how many features it has; choose another model"
        )
    return width
