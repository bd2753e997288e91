"""From a pre-trained encoder to a model to fine-tune or probe: which tensors are taken, and which stay fresh."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mae_lite_distill.config import MAELiteConfig
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models.weights import create_student, fit_start

# What differs between a pre-trained encoder and a classifier: the norm before or after pooling, and the head.
_AROUND = ("norm.", "fc_norm.", "head.")


def build_from_encoder(config: MAELiteConfig, info: DataInfo) -> nn.Module:
    """Build the student and load the encoder that it starts from; all blocks, or the first ``method.keep_blocks``.

    The head stays fresh, and so does a norm that the encoder does not have (``fc_norm`` after pooling).

    Raises `ConfigError` where the start is missing, and `CheckpointError` for weights of another model.
    """
    start = config.student
    model = create_student(start.model_copy(update={"weights": None, "start_row": None}), info)
    if start.weights is not None:
        tensors = fit_start(model, start.weights, optional=_AROUND).tensors
        load_encoder(model, tensors, keep_blocks=config.method.keep_blocks, where=start.weights)
    elif start.start_row is not None:
        raise ConfigError(f"student.start_row: say where '{start.start_row}' was trained: --set student.weights=RUN")
    return model


def load_encoder(model: nn.Module, tensors: dict[str, Tensor], *, keep_blocks: int | None, where: str) -> None:
    """Load an encoder into a timm ViT with as many blocks.

    ``keep_blocks`` k keeps the first k blocks with patch embedding, class token and positions, and leaves the others
    and the norm as they are; 0 loads nothing, None everything. Raises `CheckpointError` if the rest does not fit, and
    `ConfigError` if there are fewer than k blocks.
    """
    own: dict[str, Any] = model.state_dict()
    depth = len(model.blocks)  # type: ignore[arg-type]  # a timm ViT
    if keep_blocks is not None and keep_blocks > depth:
        raise ConfigError(f"method.keep_blocks: {keep_blocks} of {depth} blocks")
    body = {name for name in own.keys() | tensors.keys() if not name.startswith(_AROUND)}
    strange = sorted(
        name for name in body if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if strange:
        raise CheckpointError(f"{where}: weights of another model ({', '.join(strange[:3])})")
    if keep_blocks == 0:
        return
    wanted = body | {name for name in own.keys() & tensors.keys() if name.startswith(("norm.", "fc_norm."))}
    if keep_blocks is not None and keep_blocks < depth:
        wanted = {name for name in body if not name.startswith("blocks.") or int(name.split(".")[1]) < keep_blocks}
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(tensors[name])
