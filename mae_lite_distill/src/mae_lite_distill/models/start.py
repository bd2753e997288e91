"""From a pre-trained encoder to a model to fine-tune or probe: which tensors are taken, and which stay fresh."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mae_lite_distill.config import MAELiteConfig
from mae_lite_distill.models.relative import tables
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import ConfigError
from vitutor_core.models.fit import classifier_of
from vitutor_core.models.weights import create_student, fit_start, start_of

# What differs between a pre-trained encoder and a classifier: the norm before or after pooling, and the head.
_AROUND = ("norm.", "fc_norm.", "head.")


def build_from_encoder(config: MAELiteConfig, info: DataInfo) -> nn.Module:
    """Build the student and load the encoder that it starts from; all blocks, or the first ``method.keep_blocks``.

    The head stays fresh, and so does what the encoder does not have: a norm after pooling (``fc_norm``), relative
    positions.

    Raises `ConfigError` where the start is missing or has fewer blocks, and `CheckpointError` for weights of another
    model.
    """
    model: Any = create_student(config.student.model_copy(update={"weights": None, "start_row": None}), info)
    start = start_of(config.student)
    if start is not None:
        tensors = fit_start(model, start, optional=(*_AROUND, *tables(model))).tensors
        depth = len(getattr(model, "blocks", ()))
        kept = _kept(tensors, config.method.keep_blocks, depth, heads=("head.", *classifier_of(model)))
        model.load_state_dict(kept, strict=False)
    built: nn.Module = model
    return built


def _kept(tensors: dict[str, Tensor], blocks: int | None, depth: int, *, heads: tuple[str, ...]) -> dict[str, Tensor]:
    """Return what is taken of an encoder with ``depth`` blocks: all but the ``heads``, or its first ``blocks``.

    With the first k of more blocks go the patch embedding, the class token and the positions, but no norm; with 0
    nothing.
    """
    if blocks is not None and blocks > depth:
        raise ConfigError(f"method.keep_blocks: {blocks} of {depth} blocks")
    if blocks is None or blocks == depth:
        return {name: value for name, value in tensors.items() if not name.startswith(heads)}
    beyond = (*_AROUND, *(f"blocks.{index}." for index in range(blocks, depth)))
    return {name: value for name, value in tensors.items() if blocks and not name.startswith(beyond)}
