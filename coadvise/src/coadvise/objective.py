"""Co-advise in a training loop of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coadvise.config import ObjectiveConfig
from coadvise.method import Coadvise, check_tokens
from vitutor_core.train.objective import Objective, describe, frozen


class CoAdvise(Objective):
    """A student and frozen teachers by role, each with a token of its own (eq. 1).

    Args:
        student: a CiT with a token for each teacher, in their order, or any timm model, whose one output takes all
            terms.
        teachers: timm models with the same classes; they are frozen and left in evaluation mode.
        terms: weights and temperatures by role.

    Raises:
        ConfigError: the student's tokens are not as many as the teachers.

    """

    def __init__(self, student: Any, teachers: Mapping[str, Any], terms: ObjectiveConfig | None = None) -> None:
        check_tokens(student, len(teachers))
        info = describe(student)
        of_student = {role: frozen(teacher, info) for role, teacher in teachers.items()}
        super().__init__(Coadvise(student, terms or ObjectiveConfig(), of_student, info))
