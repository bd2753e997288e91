from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from dearkd.losses import logit_loss, total_loss
from dearkd.models.bias import convit_init, relative_bias
from vitutor_core.analysis.attention import attention_distance

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 5e-5)]
BIAS_CASES = ["relative_bias_convit_init_4_heads", "relative_bias_convit_init_9_heads", "relative_bias_general"]


def load(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def assert_agrees(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("name", BIAS_CASES)
def test_relative_bias(name, dtype, tolerance):
    case = load(name, dtype)
    side = round(case["expected.b"].shape[-1] ** 0.5)
    bias = relative_bias(case["weight.alpha"], case["weight.Delta"], (side, side), 0)
    assert_agrees(bias[0], case["expected.b"], tolerance)
    assert_agrees(bias[0].softmax(-1), case["expected.attention"], tolerance)
    distance = attention_distance(bias.softmax(-1), (side, side), 0, patch_size_px=1)
    assert_agrees(distance.to(dtype), case["expected.attention_distance"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_relative_bias_gradients(dtype, tolerance):
    case = load("relative_bias_general", dtype)
    alpha, delta = case["weight.alpha"].requires_grad_(), case["weight.Delta"].requires_grad_()
    (relative_bias(alpha, delta, (5, 5), 0)[0] * case["input.cotangent"]).sum().backward()
    assert_agrees(alpha.grad, case["grad.alpha"], tolerance)
    assert_agrees(delta.grad, case["grad.Delta"], tolerance)


@pytest.mark.parametrize("heads", [4, 9])
def test_convit_initialisation(heads):
    case = load(f"relative_bias_convit_init_{heads}_heads", torch.float32)
    alpha, delta = convit_init(heads)
    # The strength of the released initialisation is a setting of its configuration.
    assert torch.equal(case["weight.alpha"] / case["weight.alpha"][0], alpha)
    assert torch.equal(case["weight.Delta"], delta)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_stage1_label_and_logit_terms(dtype, tolerance):
    case = load("stage1_logit_and_label_terms", dtype)
    cls_logits, dist_logits = case["input.z_cls"].requires_grad_(), case["input.z_dist"].requires_grad_()
    label = F.cross_entropy(cls_logits, case["input.y"])
    logit = logit_loss(dist_logits, case["input.z_teacher"])
    loss = total_loss(label, logit, torch.zeros((), dtype=dtype), alpha_loss=0.7, beta_loss=0.0)
    loss.backward()
    assert_agrees(loss.detach(), case["expected.loss"], tolerance)
    assert_agrees(cls_logits.grad, case["grad.z_cls"], tolerance)
    assert_agrees(dist_logits.grad, case["grad.z_dist"], tolerance)
