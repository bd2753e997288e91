"""DearKD's stage I in a training loop of one's own; stage II is the student with cross-entropy alone."""

from __future__ import annotations

from typing import Any

from dearkd.config import ObjectiveConfig
from dearkd.method import DearKD, check_student
from vitutor_core.distill import FrozenTeacher
from vitutor_core.train.objective import Objective, describe, frozen


class Distiller(Objective):
    """A student, a frozen teacher, and the aligners and distillation head of eq. 6.

    Args:
        student: a vision transformer of timm; with another model, set ``distill="none"`` and ``pairs=()``.
        teacher: any timm model with the same classes; it is frozen and left in evaluation mode.
        terms: the paper's objective; by default pairs and aligners as the two models' shapes suggest.

    Raises:
        ConfigError: the two do not fit.

    """

    def __init__(self, student: Any, teacher: Any, terms: ObjectiveConfig | None = None) -> None:
        terms = terms or ObjectiveConfig(pairs="auto", aligner_act="auto")
        check_student(student, terms)
        info = describe(student)
        of_student: FrozenTeacher = frozen(teacher, info)
        super().__init__(DearKD.taught(student, of_student, terms, info))
