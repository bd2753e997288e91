"""Contrastive pre-training by MoCo-v3 (Chen et al., ICCV 2021, arXiv 2104.02057), with the paper's settings."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from mae_lite_distill.config import MAELiteConfig, MoCoConfig
from mae_lite_distill.losses import contrastive_loss
from mae_lite_distill.methods.momentum import Following
from mae_lite_distill.methods.pretraining import Pretraining, create_encoder
from mae_lite_distill.models.heads import mlp_head
from mae_lite_distill.models.initial import init_linear
from mae_lite_distill.models.positions import freeze_positions
from mae_lite_distill.views import TwoViews
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distributed import gather_rows, synchronise_batch_norm, world
from vitutor_core.train.method import Clock, StepOutput, Traits


class ContrastivePretraining(Pretraining):
    """The encoder to be published with projector and predictor, and the key encoder, which follows slowly.

    The key encoder is part of the module, without gradients, so that checkpoints hold it. Batches bring whole images:
    both views are cut here, because the loaders give one view of an image.
    """

    traits = Traits(classifies=False, decays_all=True, measures=True)

    def __init__(self, student: nn.Module, config: MoCoConfig, info: DataInfo) -> None:
        super().__init__(student)
        width = self.student.embed_dim
        self.projector = mlp_head((width, config.hidden, config.hidden, config.features))
        self.predictor = mlp_head((config.features, config.hidden, config.features))
        for part in (self.projector, self.predictor):
            init_linear(part)
        self.projector, self.predictor = map(synchronise_batch_norm, (self.projector, self.predictor))
        self.key_student: Any = copy.deepcopy(student).requires_grad_(False)
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self._config = config
        self._views = TwoViews(config, info)
        self._follow = Following(config.momentum)

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build the encoder and its heads; raises `ConfigError` for a model that is no plain ViT."""
        student = create_encoder(config.student, info)
        init_encoder(student)
        return cls(student, config.moco, info)

    def prepare(self, batch: Batch, clock: Clock) -> Batch:
        self._follow(clock, (self.key_student, self.student), (self.key_projector, self.projector))
        return batch._replace(drawn={"views": self._views(batch.images)})

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        views = torch.cat(batch.drawn["views"])
        queries = [self.predictor(part) for part in self._project(self.student, self.projector, views)]
        with torch.no_grad():
            keys = self._project(self.key_student, self.key_projector, views)
        first_row = world()[0] * len(keys[0])
        terms = [
            contrastive_loss(query, gather_rows(key, even=True), temperature=self._config.temperature, first=first_row)
            for query, key in zip(queries, reversed(keys), strict=True)
        ]
        return StepOutput(terms[0] + terms[1], parts={"contrast_loss": terms[0] + terms[1]})

    def _project(self, vit: Any, projector: nn.Module, views: Tensor) -> list[Tensor]:
        """Return the projections (B, C) of both views; each view has batch statistics of its own, as released."""
        tokens = vit.forward_features(views)[:, 0]
        return [projector(part) for part in tokens.chunk(2)]


def init_encoder(vit: Any) -> None:
    """Initialise an encoder as MoCo-v3 does: q, k and v as matrices of their own, fixed positions, row first."""
    width = vit.embed_dim
    init_linear(vit.blocks)
    for block in vit.blocks:
        nn.init.uniform_(block.attn.qkv.weight, -((6 / (2 * width)) ** 0.5), (6 / (2 * width)) ** 0.5)
    kernel = vit.patch_embed.proj.weight
    bound = (6 / (kernel[0].numel() + width)) ** 0.5
    nn.init.uniform_(kernel, -bound, bound)
    nn.init.zeros_(vit.patch_embed.proj.bias)
    nn.init.normal_(vit.cls_token, std=1e-6)
    freeze_positions(vit, first="row")
