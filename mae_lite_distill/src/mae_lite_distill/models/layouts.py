"""The names of tensors in checkpoints of MAE, MAE-Lite and MoCo-v3; what is beside the encoder gets our names too."""

from __future__ import annotations

from typing import Any

from vitutor_core.models.layouts import Layout

_PRETRAINED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("vit_tiny_patch16_224", {"num_heads": 12}),
    ("vit_small_patch16_224", {"num_heads": 12}),
    ("vit_base_patch16_224", {}),
    ("vit_large_patch16_224", {}),
    ("vit_huge_patch14_224", {}),
)

MAE = Layout(
    "MAE",
    (
        # With a teacher, the released distiller keeps it and the maps between heads beside the student.
        (r"(?:model\.)?decoder_embed\.", "decoder.embed."),
        (r"(?:model\.)?decoder_blocks\.", "decoder.blocks."),
        (r"(?:model\.)?decoder_norm\.", "decoder.norm."),
        (r"(?:model\.)?decoder_pred\.", "decoder.predict."),
        (r"(?:model\.)?mask_token$", "decoder.mask_token"),
        (r"tch_model\.", "teacher."),
        (r"model\.", ""),
    ),
    computed=r"(decoder_pos_embed|\.relative_position_index)$",
    aside=("decoder.", "teacher.", "attn_adapter.", "hidden_adapter."),
    # A fine-tuned one pools the patches, and has the norm behind that; the last has relative positions, too.
    models=(
        *_PRETRAINED,
        *((name, {**kwargs, "global_pool": "avg"}) for name, kwargs in _PRETRAINED),
        ("mae_lite_relative_tiny_patch16_224", {}),
    ),
)

MOCO = Layout(
    "MoCo-v3",
    (
        (r"base_encoder\.head\.", "projector."),
        (r"base_encoder\.", ""),
        (r"momentum_encoder\.head\.", "key_projector."),
        (r"momentum_encoder\.", "key_student."),
    ),
    aside=("projector.", "predictor.", "key_projector.", "key_student."),
    models=_PRETRAINED,
)

LAYOUTS = (MAE, MOCO)
