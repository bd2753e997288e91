"""Self-distillation without labels by DINO (Caron et al., ICCV 2021, arXiv 2104.14294)."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from mae_lite_distill.config import DINOConfig, MAELiteConfig
from mae_lite_distill.losses import self_distillation_loss
from mae_lite_distill.methods.momentum import Following
from mae_lite_distill.methods.pretraining import Pretraining, create_encoder
from mae_lite_distill.models.crops import class_token
from mae_lite_distill.models.heads import PrototypeHead
from mae_lite_distill.views import MultiCrop
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distributed import sum_over_processes, synchronise_batch_norm, world
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock, StepOutput


class DINO(Pretraining):
    """The encoder to be published with its head, and the teacher: their average, which sees the global crops alone.

    Teacher and centre are part of the module, without gradients, so that checkpoints hold them. The teacher's encoder
    is always in evaluation mode: it has no stochastic depth.
    """

    centre: Tensor

    def __init__(self, student: nn.Module, config: DINOConfig, info: DataInfo) -> None:
        super().__init__(student)
        sizes = {"hidden": config.hidden, "bottleneck": config.bottleneck, "prototypes": config.prototypes}
        head = PrototypeHead(self.student.embed_dim, **sizes, batch_norm=config.batch_norm)
        self.head = synchronise_batch_norm(head)
        self.teacher: Any = copy.deepcopy(student).requires_grad_(False).eval()
        self.teacher_head = copy.deepcopy(self.head).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(config.prototypes))
        self._config = config
        self._views = MultiCrop(config, info)
        self._follow = Following(config.momentum)

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build the encoder and its head; raises `ConfigError` where model or crops do not fit."""
        student = create_encoder(config.student, info)
        patch, side = student.patch_embed.patch_size[0], config.dino.local_size
        if config.dino.local_crops and (side % patch or side > info.image_size):
            raise ConfigError(f"dino.local_size: {side}; set a multiple of {patch}, up to {info.image_size}")
        return cls(student, config.dino, info)

    def train(self, mode: bool = True) -> Self:
        """Keep the teacher's encoder in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        self._follow(clock, (self.teacher, self.student), (self.teacher_head, self.head))
        trained = batch.images.new_full((), float(clock.epoch >= self._config.frozen_epochs))
        return batch._replace(drawn={"views": self._views(batch.images), "trained": (trained,)})

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        config, (trained,) = self._config, batch.drawn["trained"]
        both, local = torch.cat(batch.drawn["views"][:2]), batch.drawn["views"][2:]
        tokens = [class_token(self.student, both)]
        if local:
            tokens.append(class_token(self.student, torch.cat(local)))
        students = self.head(torch.cat(tokens), trained).chunk(2 + len(local))
        with torch.no_grad():
            outputs = self.teacher_head(class_token(self.teacher, both)).float()
        loss = self_distillation_loss(
            students,
            outputs.chunk(2),
            self.centre,
            temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
        )
        self._move_centre(outputs)
        return StepOutput(loss, parts={"self_distillation_loss": loss})

    @torch.no_grad()
    def _move_centre(self, outputs: Tensor) -> None:
        """Let the centre follow the mean output (eq. 4) over all processes, for the next step."""
        mean = sum_over_processes(outputs.mean(0)) / world()[1]
        self.centre.lerp_(mean, 1 - self._config.centre_momentum)
