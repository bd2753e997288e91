"""The golden cases, and timm models with their weights."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 5e-5)]


def load(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def weights_of(case: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    start = f"weight.{prefix}"
    return {key.removeprefix(start): value for key, value in case.items() if key.startswith(start)}


def assert_agrees(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    # Where nothing is expected, the tolerance is absolute.
    assert (got - expected).abs().max() <= tolerance * (expected.abs().max() or 1.0)


def small_vit(
    weights: dict[str, Tensor], *, heads: int, blocks: int | None = None, **kwargs: object
) -> torch.nn.Module:
    """A plain timm ViT of 20 px and patch 4 with given weights; what is not given stays as timm makes it."""
    width = weights["cls_token"].shape[-1]
    depth = blocks or 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=20,
        patch_size=4,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        **{"num_classes": 7, **kwargs},
    )
    found = model.load_state_dict(
        {name: value for name, value in weights.items() if name in model.state_dict()}, strict=False
    )
    assert not found.unexpected_keys
    return model.to(weights["cls_token"].dtype)
