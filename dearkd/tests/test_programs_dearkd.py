"""A DearKD student leaves as a program: relative positions and their attention are in it, and none of our code."""

from __future__ import annotations

import pytest
import timm
import torch

import dearkd.models  # noqa: F401
from conformance.records import made_up_card
from vitutor_core.models.program import save_exported, save_onnx


@pytest.mark.parametrize("save", [save_exported, save_onnx])
def test_mhca_is_a_program(save, tmp_path):
    if save is save_onnx:
        pytest.importorskip("onnxscript", reason="needs the extra 'onnx' of vitutor-core")
        pytest.importorskip("onnxruntime", reason="needs the extra 'onnx' of vitutor-core")
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "mhca_blocks": 2}
    torch.manual_seed(0)
    model = timm.create_model("dearkd_tiny_patch16_224", num_classes=3, **kwargs)
    card = made_up_card(name="dearkd_tiny_patch16_224", kwargs=kwargs, image_size=32)
    assert save(tmp_path / "file", model, card, torch.rand(3, 3, 32, 32)) < 1e-4
