"""The config of a Co-advise run: the shared sections, any number of teachers, and the paper's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted, setting
from vitutor_core.schema import LARGE, Layer, RunConfig, TeacherConfig, Temperature, Weight


class ObjectiveConfig(Config):
    """Terms and weights of eq. 1; docs/fidelity/coadvise.md says why these are the defaults."""

    label_weight: float = fingerprinted(1.0, help="Weight lambda_0 of the label term", ge=0, le=LARGE)
    weights: dict[str, Weight] = fingerprinted(
        {}, help="Weight lambda of each teacher's term by role; 1 where not given"
    )
    temperatures: dict[str, Temperature] = fingerprinted(
        {}, help="Temperature tau of each teacher's term by role; 1 where not given"
    )
    direction: Literal["teacher_student", "student_teacher"] = fingerprinted(
        "teacher_student",
        help="Direction of the divergence: KL(teacher || student), or the order in which eq. 1 is written",
    )
    label_tokens: Literal["class", "all"] = fingerprinted(
        "class", help="Tokens that learn from labels: the class token, or, without teachers, all of them"
    )
    order: tuple[str, ...] | None = fingerprinted(
        None, help="Roles of the teachers, in the order of the student's tokens; null: as in `teachers`"
    )
    corruption_severities: tuple[Layer, ...] = fingerprinted(
        (), help="Severities (1 to 5) at which the corruption error is measured after the last epoch; empty: not at all"
    )


class CoadviseConfig(RunConfig):
    """Everything that a Co-advise run needs. A student with one output takes all terms there."""

    teachers: dict[str, TeacherConfig] = fingerprinted({}, help="The frozen teachers by role; none: plain training")
    method: ObjectiveConfig = fingerprinted(ObjectiveConfig(), help="The paper's objective")

    @model_validator(mode="after")
    def _terms_and_teachers_fit(self) -> Self:
        terms = self.method
        for name, named in (("weights", terms.weights), ("temperatures", terms.temperatures)):
            if unknown := sorted(set(named) - set(self.teachers)):
                raise ValueError(f"method.{name} names {', '.join(unknown)}, but the teachers are {self._roles()}")
        if terms.order is not None and sorted(terms.order) != sorted(self.teachers):
            raise ValueError(f"method.order must name each teacher once: {self._roles()}")
        if terms.label_tokens == "all" and self.teachers:
            raise ValueError("method.label_tokens=all is for runs without teachers: their tokens learn from them")
        if not set(terms.corruption_severities) <= {1, 2, 3, 4, 5}:
            raise ValueError("method.corruption_severities are whole numbers from 1 to 5")
        return self

    def _roles(self) -> str:
        return ", ".join(self.teachers) or "none"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validate, then write into the config what depends on the teachers: their order, and CiT's tokens."""
        config = super().from_mapping(values, where=where)
        found = []
        if config.method.order is None:
            found.append(setting("method.order", list(config.teachers)))
        if config.student.name.startswith("cit_") and "teacher_tokens" not in config.student.kwargs:
            stems = config.student.kwargs.get("stems", ("conv", "inv") if "_aligned_" in config.student.name else ())
            tokens = len(stems) if isinstance(stems, tuple) and stems else len(config.teachers)
            found.append(f"student.kwargs.teacher_tokens={tokens}")
        return config.changed(found) if found else config
