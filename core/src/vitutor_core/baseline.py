"""What core trains without any paper, announced as a paper announces its own."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted
from vitutor_core.paper import Paper, installed_paper
from vitutor_core.schema import LARGE, RunConfig, TeacherConfig


class DistillConfig(Config):
    """How a teacher's logits enter the loss; see `vitutor_core.train.baseline`."""

    distill: Literal["none", "soft", "hard", "token"] = fingerprinted(
        "none",
        help="What a teacher gives; soft: its distribution; hard: its answer; token: its answer, learnt by a token of "
        "its own",
    )
    weight: float = fingerprinted(
        0.5, help="Weight of the teacher's term; 1 - weight is that of the labels", ge=0, le=1
    )
    temperature: float = fingerprinted(1.0, help="Temperature of soft targets, of both distributions", gt=0, le=LARGE)


class BaselineConfig(RunConfig):
    """Everything that a baseline needs."""

    teacher: TeacherConfig | None = fingerprinted(None, help="The frozen teacher; null: none")
    method: DistillConfig = fingerprinted(DistillConfig(), help="The distillation")

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        if (self.method.distill == "none") != (self.teacher is None):
            raise ValueError("a teacher and method.distill go together: set both, or method.distill=none")
        return self


BASELINE = Paper(
    "vitutor_core", config="vitutor_core.baseline:BaselineConfig", method="vitutor_core.train.baseline:Baseline"
)
SUPERVISED = Paper(
    "supervised", config="vitutor_core.schema:RunConfig", method="vitutor_core.train.supervised:Supervised"
)
DETECTOR = Paper("detect", config="vitutor_core.schema:DetectorConfig", method="vitutor_core.train.detector:Detector")


def paper_of(package: str) -> Paper:
    """Return what a run's record names: an installed paper, or what core trains without one.

    Raises `ConfigError` for a paper that is not installed.
    """
    first, plus, other = package.rpartition("+")
    if plus:
        return paper_of(first).beside(installed_paper(other))
    own = {paper.package: paper for paper in (BASELINE, SUPERVISED, DETECTOR)}
    return own[package] if package in own else installed_paper(package)
