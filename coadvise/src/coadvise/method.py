"""Co-advise (Ren et al., CVPR 2022, arXiv 2106.12378): each teacher has its own token of the student.

L = lambda_0 CE(class token, label) + sum over teachers i of lambda_i tau_i^2 KL(teacher_i || token_i)    (eq. 1)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from coadvise import models as _models  # noqa: F401  # registers the students with timm
from coadvise.config import CoadviseConfig, ObjectiveConfig
from coadvise.evaluation import token_metrics
from coadvise.losses import divergence, label_loss, total_loss
from vitutor_core.data.types import Batch, DataInfo, EvalLoader
from vitutor_core.distill import FrozenTeacher
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.robustness import corruption_errors
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import create_student
from vitutor_core.train.method import Clock, Method, Report, StepOutput, Traits

CLASS = "class"


class Coadvise(Method):
    """The student and its frozen teachers; without teachers, plain supervised training.

    A student with one output (a one-token CiT, a CNN, an MLP) learns all terms there.
    """

    traits = Traits(measures=True)

    def __init__(
        self, student: nn.Module, terms: ObjectiveConfig, teachers: Mapping[str, FrozenTeacher], info: DataInfo
    ) -> None:
        super().__init__()
        self.student: Any = student
        self._teachers = dict(teachers)
        self._terms = terms
        self._info = info

    @classmethod
    def build(cls, config: CoadviseConfig, info: DataInfo) -> Self:
        """Build student and teachers for the data at hand; raises `ConfigError` where they do not fit."""
        student = create_student(config.student, info)
        roles = config.method.order or ()
        check_tokens(student, len(roles))
        return cls(student, config.method, {role: load_teacher(config.teachers[role], info) for role in roles}, info)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        output = self.student(batch.images)
        logits = output if isinstance(output, tuple) else (output,)
        divergences = {}
        for index, (role, teacher) in enumerate(self._teachers.items(), start=1):
            divergences[role] = divergence(
                logits[index if len(logits) > 1 else 0],
                teacher(batch.images, logits=batch.taught.get(role)).logits,
                temperature=self._terms.temperatures.get(role, 1.0),
                direction=self._terms.direction,
            )
        label = label_loss(logits if self._terms.label_tokens == "all" else logits[:1], batch.targets)
        loss = total_loss(label, divergences, label_weight=self._terms.label_weight, weights=self._terms.weights)
        parts = {"label_loss": label} | {f"{role}_loss": term for role, term in divergences.items()}
        return StepOutput(loss, parts=parts)

    def teachers(self) -> dict[str, dict[str, Any]]:
        return {role: teacher.facts for role, teacher in self._teachers.items()}

    def logit_teachers(self) -> dict[str, FrozenTeacher]:
        return dict(self._teachers)

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return `token_metrics` of the student, and its corruption errors where the config asks for them."""
        if evaluation is None:
            return Report()
        device = next(self.student.parameters()).device
        teachers = {role: _logits_of(teacher) for role, teacher in self._teachers.items()}
        with evaluation_mode(self.student):
            metrics = token_metrics(self._tokens, teachers, evaluation, device)
        if self._terms.corruption_severities:
            metrics |= corruption_errors(
                self.student,
                evaluation,
                num_classes=self._info.num_classes,
                mean=self._info.mean,
                std=self._info.std,
                device=device,
                severities=self._terms.corruption_severities,
            )
        return Report(metrics)

    def _tokens(self, images: Tensor) -> dict[str, Tensor]:
        """Return the logits (B, K) of every head of the student in evaluation mode, by the name of its token."""
        if not hasattr(self.student, "token_logits"):
            return {CLASS: self.student(images)}
        return by_token(self.student.token_logits(self.student.forward_features(images)), self._teachers)


def by_token(logits: Sequence[Tensor], roles: Collection[str]) -> dict[str, Tensor]:
    """Name logits of a student's heads: the class token's, those for teachers by role, others by their number."""
    others = roles if roles and len(logits) > 1 else [f"token{index}" for index in range(1, len(logits))]
    return dict(zip([CLASS, *others], logits, strict=True))


def check_tokens(student: nn.Module, teachers: int) -> None:
    """Raise `ConfigError` where a student with tokens for teachers has another number of them."""
    tokens = len(getattr(student, "teacher_heads", ()))
    if teachers and tokens not in (0, teachers):
        name = getattr(student, "pretrained_cfg", {}).get("architecture", type(student).__name__)
        raise ConfigError(
            f"teachers: {teachers} for the {tokens} teacher tokens of {name}; set student.kwargs.teacher_tokens to "
            f"{teachers}, or to 0 for all terms on the class token"
        )


def _logits_of(teacher: FrozenTeacher) -> Any:
    return lambda images: teacher(images).logits
