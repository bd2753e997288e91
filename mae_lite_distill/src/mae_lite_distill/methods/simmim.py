"""Masked pre-training by SimMIM (Xie et al., CVPR 2022, arXiv 2111.09886): mask tokens go through the encoder."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from mae_lite_distill.config import MAELiteConfig, SimMIMConfig
from mae_lite_distill.losses import masked_l1_loss, patchify
from mae_lite_distill.methods.pretraining import Pretraining, create_encoder
from mae_lite_distill.models.encoder import random_masking
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock, StepOutput


class SimMIM(Pretraining):
    """The encoder to be published, the mask token, and a linear layer that predicts the pixels of each patch."""

    def __init__(self, student: nn.Module, config: SimMIMConfig, info: DataInfo) -> None:
        super().__init__(student)
        width, self._patch = self.student.embed_dim, int(self.student.patch_embed.patch_size[0])
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.predict = nn.Linear(width, info.channels * self._patch**2)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self._config = config

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build the encoder and what predicts; raises `ConfigError` where model and masks do not fit."""
        student = create_encoder(config.student, info)
        side, patch = config.simmim.mask_patch, student.patch_embed.patch_size[0]
        if side % patch or info.image_size % side:
            fits = f"a multiple of the patch size, {patch}, that divides {info.image_size}"
            raise ConfigError(f"simmim.mask_patch: {side}; set {fits}")
        cells = (info.image_size // side) ** 2
        if int(cells * (1 - config.simmim.mask_ratio)) == 0:
            raise ConfigError(f"simmim.mask_ratio: leaves none of {cells} squares; set a lower one")
        return cls(student, config.simmim, info)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        masked = self._mask(batch.images)
        loss = masked_l1_loss(self.reconstruct(batch.images, masked), patchify(batch.images, self._patch), masked)
        return StepOutput(loss, parts={"reconstruction_loss": loss})

    def reconstruct(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the predictions (B, N, P) for images (B, C, H, W) whose patches ``masked`` (B, N) are hidden."""
        vit = self.student
        hidden = masked[..., None].to(self.mask_token.dtype)
        tokens = vit.patch_embed(images)
        tokens = tokens * (1 - hidden) + self.mask_token * hidden
        first = vit.cls_token.expand(len(tokens), -1, -1)
        tokens = vit.blocks(vit.norm_pre(torch.cat([first, tokens], dim=1) + vit.pos_embed))
        predictions: Tensor = self.predict(vit.norm(tokens)[:, 1:])
        return predictions

    def _mask(self, images: Tensor) -> Tensor:
        """Draw the masked squares of each image; return for its patches, (B, N), 1 in those and 0 elsewhere."""
        side, per_side = images.shape[-1] // self._config.mask_patch, self._config.mask_patch // self._patch
        drawn = random_masking(len(images), side**2, self._config.mask_ratio, images.device).removed
        squares = drawn.view(-1, side, 1, side, 1).expand(-1, -1, per_side, -1, per_side)
        return squares.reshape(len(images), -1)
