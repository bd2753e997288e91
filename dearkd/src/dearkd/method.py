"""DearKD (Chen et al., CVPR 2022, arXiv 2204.12997), section 3: two-stage training of a ViT with a CNN teacher.

Stage I  (eq. 6):  L = alpha_loss * L_CE + (1 - alpha_loss) * L_logit + beta_loss * L_hidden
Stage II (eq. 7):  L = L_CE
"""

from __future__ import annotations

from typing import Any, Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.config import DearKDConfig, ObjectiveConfig
from dearkd.losses.hidden import hidden_loss
from dearkd.losses.logit import logit_loss
from dearkd.losses.total import total_loss
from dearkd.models.aligner import Aligner
from dearkd.models.mhca import MHCA
from dearkd.pairs import Pairs, auto_pairs
from vitutor_core.analysis.attention import attention_distance
from vitutor_core.data.types import Batch, DataInfo, EvalLoader
from vitutor_core.distill import FrozenTeacher
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import create_student
from vitutor_core.train.method import Clock, Method, Report, StepOutput

Stages = tuple[int, int]
"""Epochs with the teacher, and all."""

TEACHER = "cnn"
"""The role of its only teacher."""


class DearKD(Method):
    """The student, its aligners and distillation head, and, in stage I only, the teacher.

    Without a teacher this is plain supervised training, the baseline of the paper's tables.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: ObjectiveConfig,
        *,
        stages: Stages = (0, 1),
        teacher: FrozenTeacher | None = None,
        pairs: Pairs = (),
        aligners: nn.ModuleList | None = None,
        head_dist: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.student: Any = student
        self.aligners = aligners
        self.head_dist = head_dist
        self._teacher = teacher
        self._facts = teacher.facts if teacher is not None else None
        self._terms = terms
        self._pairs = pairs
        self._stage1_epochs, epochs = stages
        self._leaves = 0 < self._stage1_epochs < epochs

    @classmethod
    def build(cls, config: DearKDConfig, info: DataInfo) -> Self:
        """Build student, teacher and projectors for the data at hand; raises `ConfigError` where they do not fit."""
        student: Any = create_student(config.student, info)
        stages = (config.stage1_epochs, config.train.epochs)
        if config.teacher is None:
            return cls(student, config.method, stages=stages)
        check_student(student, config.method)
        teacher = load_teacher(config.teacher, info, reads_logits=config.method.distill != "none")
        return cls.taught(student, teacher, config.method, info, stages=stages)

    @classmethod
    def taught(
        cls, student: Any, teacher: FrozenTeacher, terms: ObjectiveConfig, info: DataInfo, *, stages: Stages = (1, 1)
    ) -> Self:
        """Make the projectors between a student and its teacher; raises `ConfigError` where the two do not fit."""
        if terms.distill != "none" and getattr(teacher.model, "num_classes", None) == 0:
            raise ConfigError(
                "teacher: it has no classes to teach; set method.distill=none, and it teaches by its maps"
            )
        pairs = _pairs(student, teacher, terms, info) if terms.beta_loss > 0 else ()
        aligners = _build_aligners(student, teacher, pairs, terms, info) if pairs else None
        head_dist = None
        if terms.distill == "pooled" and not terms.share_head:
            head_dist = nn.Linear(student.num_features, info.num_classes)
            nn.init.trunc_normal_(head_dist.weight, std=0.02)
            nn.init.zeros_(head_dist.bias)
        return cls(student, terms, stages=stages, teacher=teacher, pairs=pairs, aligners=aligners, head_dist=head_dist)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        if self._teacher is None:
            loss = F.cross_entropy(self.student(batch.images), batch.targets)
            return StepOutput(loss, parts={"label_loss": loss})
        pairs = self._pairs if self.aligners is not None else ()
        student = read_intermediates(self.student, batch.images, features=[block - 1 for block, _ in pairs])
        stages = [stage for _, stage in pairs]
        teacher = self._teacher(batch.images, features=stages, logits=batch.taught.get(TEACHER))
        label_logits, dist_logits = self._heads(student.tokens)
        parts = {"label_loss": F.cross_entropy(label_logits, batch.targets)}
        if dist_logits is not None:
            parts["logit_loss"] = logit_loss(dist_logits, teacher.logits)
        if self.aligners is not None:
            aligned = [aligner(map_) for aligner, map_ in zip(self.aligners, student.features, strict=True)]
            parts["hidden_loss"] = hidden_loss(aligned, teacher.features, target_norm=self._terms.target_norm)
        loss = total_loss(
            parts["label_loss"],
            parts.get("logit_loss"),
            parts.get("hidden_loss"),
            alpha_loss=self._terms.alpha_loss,
            beta_loss=self._terms.beta_loss,
        )
        return StepOutput(loss, parts=parts)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map the final tokens (B, N, d) to class logits and distillation logits, both (B, K)."""
        student = self.student
        if self._terms.distill == "token":
            return student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])
        label_logits = student.forward_head(tokens)
        if self._terms.distill == "none":
            return label_logits, None
        pooled = tokens[:, student.num_prefix_tokens :].mean(1)
        head = student.head if self.head_dist is None else self.head_dist
        return label_logits, head(pooled)

    def on_epoch(self, clock: Clock) -> bool:
        """Enter stage II: free the teacher, drop aligners and distillation head; one continuous schedule."""
        if self._teacher is None or clock.epoch < self._stage1_epochs:
            return False
        self._teacher = None
        self.aligners = None
        self.head_dist = None
        if self._terms.freeze_rpe:
            for module in self.student.modules():
                if isinstance(module, MHCA):
                    module.alpha.requires_grad_(False)
                    module.delta.requires_grad_(False)
        return True

    def teachers(self) -> dict[str, dict[str, Any]]:
        return {TEACHER: self._facts} if self._facts is not None else {}

    def logit_teachers(self) -> dict[str, FrozenTeacher]:
        reads = self._teacher is not None and self._terms.distill != "none"
        return {TEACHER: self._teacher} if reads and self._teacher is not None else {}

    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return when the teacher leaves, and the mean attention distance of each block of a ViT in pixels (Fig. 4)."""
        events = {"the teacher leaves": self._stage1_epochs} if self._leaves else {}
        metrics = self._attention_distances(probe) if probe is not None else {}
        return Report(metrics, events=events)

    @torch.no_grad()
    def _attention_distances(self, images: Tensor) -> dict[str, float]:
        vit = self.student
        if not isinstance(vit, VisionTransformer):
            return {}
        with evaluation_mode(vit):
            outputs = read_intermediates(vit, images, attentions=range(len(vit.blocks)))
        grid, patch = vit.patch_embed.grid_size, vit.patch_embed.patch_size[0]
        distances = [
            attention_distance(attention, grid, vit.num_prefix_tokens, patch_size_px=patch).mean().item()
            for attention in outputs.attentions
        ]
        return {f"attention_distance_block{index}": distance for index, distance in enumerate(distances)}


def check_student(student: nn.Module, terms: ObjectiveConfig) -> None:
    """Raise `ConfigError` where a student has not what the logit term reads."""
    name, distill = getattr(student, "pretrained_cfg", {}).get("architecture", type(student).__name__), terms.distill
    if distill == "pooled" and not hasattr(student, "num_prefix_tokens"):
        raise ConfigError(f"method.distill=pooled: {name} has no patch tokens; set student.name=deit_tiny_patch16_224")
    if distill == "token" and not hasattr(student, "head_dist"):
        raise ConfigError(f"method.distill=token: {name} has no distillation token; use one of timm's deit_*_distilled")


def _pairs(student: Any, teacher: FrozenTeacher, terms: ObjectiveConfig, info: DataInfo) -> Pairs:
    if terms.pairs != "auto":
        return terms.pairs
    return auto_pairs(student, teacher.model, scale=info.image_size / teacher.input["image_size"])


def _build_aligners(
    student: Any, teacher: FrozenTeacher, pairs: Pairs, terms: ObjectiveConfig, info: DataInfo
) -> nn.ModuleList:
    blocks = getattr(student, "blocks", ())
    for block, _ in pairs:
        if not 1 <= block <= len(blocks):
            raise ConfigError(f"method.pairs: block {block} of a student with {len(blocks)} blocks")
    # Noise, as of black images even a map without ReLU may have one sign.
    images = torch.randn(1, info.channels, info.image_size, info.image_size, generator=torch.Generator().manual_seed(0))
    maps = teacher(images, features=[stage for _, stage in pairs]).features
    has_both_signs = any(bool((map_ < 0).any()) for map_ in maps)
    act = not has_both_signs if terms.aligner_act == "auto" else terms.aligner_act == "relu"
    if act and has_both_signs:
        raise ConfigError("method.pairs: a teacher stage has negative values; set method.aligner_act=none")
    return nn.ModuleList(
        Aligner(
            student.embed_dim,
            map_.shape[1],
            (map_.shape[2], map_.shape[3]),
            act=act,
            channel_map=terms.channel_map,
        )
        for map_ in maps
    )
