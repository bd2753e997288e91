"""Masked pre-training, and the distillation of attention or hidden states during it (MAE-Lite, arXiv 2205.14443).

L = L_MAE + alpha * L_attn (eq. 3), or L_hidden, the teacher seeing the patches that the student sees, in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from mae_lite_distill.config import MAEConfig, MAELiteConfig
from mae_lite_distill.losses import attention_loss, hidden_loss, patchify, pixel_loss, unpatchify
from mae_lite_distill.losses.pixels import patch_statistics
from mae_lite_distill.methods.pretraining import Pretraining, create_encoder
from mae_lite_distill.models.decoder import Decoder
from mae_lite_distill.models.encoder import (
    Encoded,
    Masking,
    check_encoder,
    encode,
    encode_hidden,
    encode_logits,
    random_masking,
)
from mae_lite_distill.models.heads import LogitBlock, head_map, projection
from mae_lite_distill.models.initial import init_linear
from mae_lite_distill.models.positions import freeze_positions
from vitutor_core.data.types import Batch, DataInfo, EvalLoader
from vitutor_core.distill import FrozenTeacher
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.distributed import sum_over_processes
from vitutor_core.errors import ConfigError
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.train.method import Clock, Report, StepOutput

_EVALUATION_SEED = 0
"""Of the masks of evaluation images, the same in every evaluation of every run."""


class MaskedPretraining(Pretraining):
    """The encoder to be published, the decoder, and, under distillation, the teacher and the maps to it."""

    def __init__(
        self,
        student: nn.Module,
        decoder: Decoder,
        config: MAEConfig,
        info: DataInfo,
        *,
        teacher: FrozenTeacher | None = None,
        maps: nn.ParameterList | None = None,
        extra_block: LogitBlock | None = None,
    ) -> None:
        super().__init__(student)
        self.decoder = decoder
        self.maps = maps
        self.extra_block = extra_block
        self._teacher = teacher
        self._config = config
        self._blocks = [layer - 1 for layer in config.distill_layers]
        self._pixels = torch.tensor(info.mean).view(1, -1, 1, 1), torch.tensor(info.std).view(1, -1, 1, 1)

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build encoder, decoder and, where one is named, the teacher; raises `ConfigError` where they do not fit."""
        student = create_encoder(config.student, info)
        named = config.teacher
        teacher = None if named is None else lambda: load_teacher(named, info, reads_logits=False)
        return cls.paired(student, config.mae, info, teacher=teacher)

    @classmethod
    def paired(
        cls, student: Any, mae: MAEConfig, info: DataInfo, *, teacher: Callable[[], FrozenTeacher] | None
    ) -> Self:
        """Initialise an encoder, and make its decoder and what a teacher needs; raises `ConfigError`.

        The teacher is made after the decoder: its weights are drawn before they are loaded.
        """
        if int(student.patch_embed.num_patches * (1 - mae.mask_ratio)) == 0:
            raise ConfigError(f"mae.mask_ratio: keeps none of {student.patch_embed.num_patches} patches")
        init_encoder(student)
        patch, grid = student.patch_embed.patch_size[0], student.patch_embed.grid_size
        decoder = Decoder(
            student.embed_dim,
            grid,
            info.channels * patch**2,
            width=mae.decoder_width,
            depth=mae.decoder_depth,
            heads=mae.decoder_heads,
        )
        if teacher is None:
            return cls(student, decoder, mae, info)
        known = teacher()
        _check_pair(student, known.model, mae)
        extra = None
        if mae.decouple_after is not None:
            extra = LogitBlock(student.embed_dim, student.blocks[-1].attn.num_heads)
            init_linear(extra)
        maps = nn.ParameterList(_map(student, known.model, layer, mae) for layer in mae.distill_layers)
        return cls(student, decoder, mae, info, teacher=known, maps=maps, extra_block=extra)

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        return self.objective(batch.images, self._mask(batch.images))

    def objective(self, images: Tensor, masking: Masking) -> StepOutput:
        """Return the objective of images (B, C, H, W) under a given masking."""
        config = self._config
        wanted = self._blocks if self._teacher is not None and self.extra_block is None else ()
        reads = {"hidden" if config.distill_target == "hidden" else "logits": wanted}
        encoded = encode(self.student, images, masking, tokens_after=config.decouple_after, **reads)
        patches = patchify(images, self._patch)
        parts = {
            "reconstruction_loss": pixel_loss(
                self.decoder(encoded.tokens, masking), patches, masking.removed, normalise=config.normalise_pixels
            )
        }
        loss = parts["reconstruction_loss"]
        if self._teacher is not None and self.maps is not None:
            name, term = self._distilled(encoded, self._taught(self._teacher, images, masking), list(self.maps))
            parts[name] = term
            loss = loss + config.distill_weight * term
        return StepOutput(loss, parts=parts)

    def _distilled(self, encoded: Encoded, theirs: list[Tensor], maps: list[Tensor]) -> tuple[str, Tensor]:
        """Return the name and the value of the distillation loss."""
        if self._config.distill_target == "hidden":
            return "hidden_loss", hidden_loss([encoded.hidden[block] for block in self._blocks], theirs, maps)
        if self.extra_block is not None:
            ours = [self.extra_block(encoded.last)]
        else:
            ours = [encoded.logits[block] for block in self._blocks]
        return "attention_loss", attention_loss(ours, theirs, maps, quantity=self._config.distill_quantity)

    @torch.no_grad()
    def _taught(self, teacher: FrozenTeacher, images: Tensor, masking: Masking) -> list[Tensor]:
        """Return what the teacher gives of the distilled blocks: attention logits, or hidden states."""
        if teacher.model.training:
            raise ValueError("the teacher was put into training mode")
        read = encode_hidden if self._config.distill_target == "hidden" else encode_logits
        found = read(teacher.model, teacher.adapt(images), masking, self._blocks)
        return [found[block] for block in self._blocks]

    @property
    def _patch(self) -> int:
        return int(self.student.patch_embed.patch_size[0])

    def _mask(self, images: Tensor, *, generator: torch.Generator | None = None) -> Masking:
        patches = self.student.patch_embed.num_patches
        return random_masking(len(images), patches, self._config.mask_ratio, images.device, generator=generator)

    def teachers(self) -> dict[str, dict[str, Any]]:
        return {"mae": self._teacher.facts} if self._teacher is not None else {}

    @torch.no_grad()
    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return ``eval_reconstruction_loss``; of the probe also pictures, of the whole set what `Pretraining` does."""
        if probe is not None:
            return Report({"eval_reconstruction_loss": self._evaluation_loss(probe)}, self._pictures(probe[:8]))
        if evaluation is None:
            return Report()
        device = self.student.pos_embed.device
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        for images, _ in evaluation:
            loss = self._evaluation_loss(images.to(device))
            totals += torch.tensor([loss * len(images), len(images)], dtype=torch.float64, device=device)
        sum_over_processes(totals)
        features = super().report(evaluation=evaluation)
        return Report(features.metrics | {"eval_reconstruction_loss": (totals[0] / totals[1]).item()})

    def _evaluation_loss(self, images: Tensor) -> float:
        masking, predictions = self._reconstruct(images)
        patches = patchify(images, self._patch)
        loss = pixel_loss(predictions, patches, masking.removed, normalise=self._config.normalise_pixels)
        return loss.item()

    def _pictures(self, images: Tensor) -> dict[str, Tensor]:
        """Return rows of images, without the removed patches, and with them as predicted: (3, 3 H, B W) in [0, 1]."""
        masking, predictions = self._reconstruct(images)
        patches = patchify(images, self._patch)
        if self._config.normalise_pixels:
            # The network does not predict a patch's mean and deviation: borrowed from the image, as in MAE's figures.
            mean, deviation = patch_statistics(patches)
            predictions = predictions * deviation + mean
        removed = masking.removed[..., None]
        grid = self.student.patch_embed.grid_size
        rows = [patches, patches * (1 - removed), torch.where(removed.bool(), predictions, patches)]
        mean_pixel, deviation_pixel = (value.to(images.device) for value in self._pixels)
        shown = [unpatchify(row, self._patch, grid) * deviation_pixel + mean_pixel for row in rows]
        return {"reconstruction": torch.cat([torch.cat(list(row), dim=2) for row in shown], dim=1).clamp(0, 1)}

    def _reconstruct(self, images: Tensor) -> tuple[Masking, Tensor]:
        """Return the fixed masking of evaluation images, and the predictions for all patches, in evaluation mode."""
        generator = torch.Generator(images.device).manual_seed(_EVALUATION_SEED)
        masking = self._mask(images, generator=generator)
        with evaluation_mode(self):
            encoded = encode(self.student, images, masking, tokens_after=self._config.decouple_after)
            return masking, self.decoder(encoded.tokens, masking)


def init_encoder(vit: Any) -> None:
    """Initialise an encoder as MAE does, with fixed positions; the bias of the patch embedding is left as it is."""
    init_linear(vit.blocks)
    nn.init.xavier_uniform_(vit.patch_embed.proj.weight.view(vit.embed_dim, -1))
    nn.init.normal_(vit.cls_token, std=0.02)
    freeze_positions(vit, first="column")


def _check_pair(student: Any, teacher: nn.Module, config: MAEConfig) -> None:
    check_encoder(teacher, "teacher")
    vit: Any = teacher
    grids = student.patch_embed.grid_size, vit.patch_embed.grid_size
    if grids[0] != grids[1]:
        raise ConfigError(f"teacher: its {grids[1]} patches are not the student's {grids[0]}; both must see the same")
    student_blocks = len(student.blocks) + (config.decouple_after is not None)
    for layer in config.distill_layers:
        if layer > min(len(vit.blocks), student_blocks):
            raise ConfigError(
                f"mae.distill_layers: block {layer} of a student with {len(student.blocks)} blocks and a teacher with "
                f"{len(vit.blocks)}"
            )
    if (config.decouple_after or 0) > len(student.blocks):
        raise ConfigError(f"mae.decouple_after: block {config.decouple_after} of {len(student.blocks)}")


def _map(student: Any, teacher: Any, layer: int, config: MAEConfig) -> nn.Parameter:
    """Return the learnt map from the student's hidden states or heads to the teacher's."""
    if config.distill_target == "hidden":
        return projection(student.embed_dim, teacher.embed_dim)
    heads = student.blocks[-1].attn.num_heads, teacher.blocks[layer - 1].attn.num_heads
    if config.head_map_init == "identity" and heads[0] != heads[1]:
        raise ConfigError(f"mae.head_map_init=identity: the student has {heads[0]} heads, the teacher {heads[1]}")
    return head_map(*heads, init=config.head_map_init)
