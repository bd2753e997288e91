"""What a user would train without any paper: the student alone, and three usual ways to distil a teacher into it."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.baseline import BaselineConfig, DistillConfig
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill.teacher import FrozenTeacher, load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.weights import create_student
from vitutor_core.schema import ModelConfig, TeacherConfig
from vitutor_core.train.method import Clock, Method, StepOutput

TEACHER = "cnn"


class Baseline(Method):
    """L = (1 - w) CE(student, label) + w L_teacher; without a teacher, cross-entropy alone.

    L_teacher is T^2 KL(teacher || student) at temperature T (soft; Hinton et al. 2015), or the cross-entropy with the
    teacher's answer (hard), or that of the logits of a token of its own (token; DeiT, arXiv 2012.12877, section 4).
    """

    def __init__(self, student: nn.Module, terms: DistillConfig, *, teacher: FrozenTeacher | None = None) -> None:
        super().__init__()
        self.student: Any = student
        self._terms = terms
        self._teacher = teacher

    @classmethod
    def build(cls, config: BaselineConfig, info: DataInfo) -> Self:
        """Build student and teacher for the data at hand; raises `ConfigError` where they do not fit."""
        return cls.paired(config.student, config.teacher, config.method, info)

    @classmethod
    def paired(cls, student: ModelConfig, teacher: TeacherConfig | None, terms: DistillConfig, info: DataInfo) -> Self:
        """Build the same from the parts of a config, for a paper that has such a row."""
        model = create_student(student, info)
        if terms.distill == "token" and not hasattr(model, "head_dist"):
            raise ConfigError(
                f"student.name: {student.name} has no distillation token; choose a deit_*_distilled of timm"
            )
        return cls(model, terms, teacher=None if teacher is None else load_teacher(teacher, info))

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        if self._teacher is None:
            return StepOutput(F.cross_entropy(self.student(batch.images), batch.targets))
        terms = self._terms
        theirs = self._teacher(batch.images, logits=batch.taught.get(TEACHER)).logits
        label_logits, logits = self._logits(batch.images)
        label = F.cross_entropy(label_logits, batch.targets)
        if terms.distill == "soft":
            taught = soft_loss(logits, theirs, temperature=terms.temperature)
        else:
            taught = F.cross_entropy(logits, theirs.argmax(1))
        parts = {"label_loss": label, "teacher_loss": taught}
        return StepOutput((1 - terms.weight) * label + terms.weight * taught, parts=parts)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, K) that learn from labels, and those that learn from the teacher."""
        if self._terms.distill == "token":
            tokens = read_intermediates(self.student, images).tokens
            return self.student.head(tokens[:, 0]), self.student.head_dist(tokens[:, 1])
        logits = self.student(images)
        return logits, logits

    def teachers(self) -> dict[str, dict[str, Any]]:
        return {TEACHER: self._teacher.facts} if self._teacher is not None else {}

    def logit_teachers(self) -> dict[str, FrozenTeacher]:
        return {TEACHER: self._teacher} if self._teacher is not None else {}


def soft_loss(logits: Tensor, theirs: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(theirs / T) || softmax(logits / T)), both (B, K), the mean over images; a scalar."""
    if logits.shape != theirs.shape:
        raise ValueError(f"soft_loss: logits {tuple(logits.shape)} against {tuple(theirs.shape)} of the teacher")
    ours, taught = (torch.log_softmax(x.float() / temperature, dim=1) for x in (logits, theirs))
    return temperature**2 * F.kl_div(ours, taught, reduction="batchmean", log_target=True)
