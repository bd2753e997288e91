"""The config of a DearKD run: the shared sections, a teacher, and the paper's own terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import model_validator

from vitutor_core.config import Config, fingerprinted
from vitutor_core.schema import EPOCHS, LARGE, Layer, RunConfig, TeacherConfig


class ObjectiveConfig(Config):
    """Terms and weights of eq. 4-7, and when the teacher leaves.

    The paper gives no value for ``alpha_loss``, ``beta_loss``, the pairs or the heads; docs/fidelity/dearkd.md says
    why these are the defaults.
    """

    alpha_loss: float = fingerprinted(
        0.5, help="Weight of the label term in eq. 6; 1 - alpha_loss weights the logit term", ge=0, le=1
    )
    beta_loss: float = fingerprinted(1.0, help="Weight of the hidden loss in eq. 6", ge=0, le=LARGE)
    distill: Literal["none", "pooled", "token"] = fingerprinted(
        "pooled",
        help="Where the teacher's hard label goes: pooled content tokens (DearKD), or DeiT's distillation token",
    )
    share_head: bool = fingerprinted(False, help="Use the class head for pooled tokens, instead of a head of their own")
    pairs: Literal["auto"] | tuple[tuple[Layer, str], ...] = fingerprinted(
        ((4, "s2"), (8, "s3")),
        help="Student block (from 1) and teacher stage of each hidden loss; empty: none; auto: the last stages whose "
        "cells are no larger than a patch, as the teacher's feature_info says",
    )
    two_stage: bool = fingerprinted(True, help="Drop the teacher after stage1_epochs; false: keep it to the end")
    stage1_epochs: int | None = fingerprinted(
        None, help="Epochs with the teacher; null: five sixths of all", ge=1, le=EPOCHS
    )
    freeze_rpe: bool = fingerprinted(False, help="Stop training alpha and delta in stage II")
    target_norm: Literal["none", "channel_std"] = fingerprinted("none", help="Normalisation of the teacher's maps")
    aligner_act: Literal["relu", "none", "auto"] = fingerprinted(
        "relu",
        help="Activation behind the aligner; none: for teachers whose maps have negative values; auto: none if they "
        "have, of an image of noise",
    )
    channel_map: Literal["pointwise", "grouped"] = fingerprinted("pointwise", help="How the aligner changes channels")


class DearKDConfig(RunConfig):
    """Everything that a DearKD run needs."""

    teacher: TeacherConfig | None = fingerprinted(None, help="The frozen CNN teacher; null: plain training")
    method: ObjectiveConfig = fingerprinted(ObjectiveConfig(), help="The paper's objective")

    @model_validator(mode="after")
    def _teacher_where_needed(self) -> Self:
        taught = self.method.distill != "none" or bool(self.method.pairs)
        if taught and self.teacher is None:
            raise ValueError("method.distill and method.pairs need a teacher")
        if not taught and self.teacher is not None:
            raise ValueError("a teacher is given, but method.distill is none and method.pairs is empty")
        if self.method.distill == "token" and (self.method.pairs or self.method.two_stage):
            raise ValueError("method.distill=token is DeiT's single-stage baseline: set pairs=[] and two_stage=false")
        if not self.method.two_stage and self.method.stage1_epochs is not None:
            raise ValueError("method.stage1_epochs is set, but two_stage is false")
        if (self.method.stage1_epochs or 0) > self.train.epochs:
            raise ValueError(
                f"method.stage1_epochs is {self.method.stage1_epochs} of {self.train.epochs} epochs; set it, too "
                "(null: five sixths)"
            )
        return self

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validate, then write the stage switch into the config: a saved config says when it was."""
        config = super().from_mapping(values, where=where)
        if config.teacher is None or not config.method.two_stage or config.method.stage1_epochs is not None:
            return config
        return config.changed([f"method.stage1_epochs={config.stage1_epochs}"])

    @property
    def stage1_epochs(self) -> int:
        """Epochs with the teacher: none without one, all of them in a single stage."""
        if self.teacher is None:
            return 0
        if not self.method.two_stage:
            return self.train.epochs
        return self.method.stage1_epochs or round(self.train.epochs * 5 / 6)
