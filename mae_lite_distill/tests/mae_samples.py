"""The golden cases, small models and small configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from conformance.suite import SHORT_EPOCHS
from mae_lite_distill.cli import PAPER
from mae_lite_distill.method import MAELite
from vitutor_core.data.types import DataInfo
from vitutor_core.train.session import RunLabel, train

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


MICRO = (
    "student.kwargs.embed_dim=16",
    "student.kwargs.depth=2",
    "student.kwargs.num_heads=2",
    "train.epochs=3",
    *SHORT_EPOCHS,
    "optim.warmup_epochs=1",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.eval_every_epochs=1",
    "runtime.checkpoint_every_epochs=1",
)
MICRO_MAE = ("mae.decoder_width=16", "mae.decoder_heads=2")
MICRO_MOCO = ("moco.hidden=32", "moco.features=16")
MICRO_DINO = ("dino.prototypes=24", "dino.hidden=32", "dino.bottleneck=8", "dino.frozen_epochs=0")
"""Runs of nine updates on digits."""
INFO = DataInfo("digits", tuple("0123456789"), 16, 3, (0.3,) * 3, (0.37,) * 3, 901, 896, "x")


def resolve(row: str, *settings: str) -> Any:
    return PAPER.resolve("digits", None, row, (*MICRO, *settings))


def train_row(row: str, out: Path, *settings: str) -> dict[str, Any]:
    label = RunLabel("mae_lite_distill", row, "digits", "x")
    return train(resolve(row, *settings), MAELite.build, label=label, out=out).model_dump(mode="json")
