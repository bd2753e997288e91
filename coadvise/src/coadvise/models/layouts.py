"""The names of tensors in checkpoints of the released code, which has the student with aligned tokens alone."""

from __future__ import annotations

from vitutor_core.models.layouts import Layout, stem_renames

CIT = Layout(
    "CiT",
    (
        (r"conv_embed\.conv\.", "patch_embed.stems.conv."),
        (r"(conv|inv)_embed\.proj\.", r"patch_embed.projections.\1."),
        *stem_renames(r"inv_embed\.stem", "patch_embed.stems.inv", "patch_embed.stems.inv.7"),
        (r"head_conv\.", "teacher_heads.0."),
        (r"head_inv\.", "teacher_heads.1."),
    ),
    models=(
        ("cit_small_aligned_patch16_224", {}),
        ("cit_tiny_patch16_224", {"stems": ("conv", "inv")}),
        ("cit_small_aligned_patch16_224", {"embed_dim": 768, "num_heads": 12}),
    ),
)

LAYOUTS = (CIT,)
