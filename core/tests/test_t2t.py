"""T2T-ViT-14 against values of the published implementation and a slow reference, and as a timm model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.complexity import complexity
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.named import named_model
from vitutor_core.models.t2t import TokenPerformer, TokensToToken, sinusoid_positions
from vitutor_core.models.weights import create_model
from vitutor_core.schema import ModelConfig

GOLDEN = Path(__file__).parent / "golden"
TINY = {"embed_dim": 12, "depth": 2, "num_heads": 3, "token_dim": 8, "random_features": 4, "num_classes": 5}
NATIVE = {"img_size": 16, "kernels": (3, 3, 3), "strides": (1, 2, 2)}
PERFORMER = {
    "norm1.weight": "ln1_w",
    "norm1.bias": "ln1_b",
    "kqv.weight": "w_kqv",
    "kqv.bias": "b_kqv",
    "projection": "w_rf",
    "proj.weight": "w_p",
    "proj.bias": "b_p",
    "norm2.weight": "ln2_w",
    "norm2.bias": "ln2_b",
    "mlp.0.weight": "w_1",
    "mlp.0.bias": "b_1",
    "mlp.2.weight": "w_2",
    "mlp.2.bias": "b_2",
}


def assert_close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max()


def load_performer(performer: TokenPerformer, case: dict[str, Tensor], prefix: str = "") -> None:
    performer.load_state_dict({ours: case[prefix + theirs] for ours, theirs in PERFORMER.items()})


@pytest.mark.parametrize(("classes", "trainable"), [(1000, 21_465_806), (100, 21_119_306), (10, 21_084_656)])
def test_parameter_counts(classes, trainable):
    with torch.device("meta"):
        model = timm.create_model("t2t_vit_14", num_classes=classes)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    assert counts == {True: trainable, False: 197 * 384 + 2 * 32 * 64}


# The values are in single precision; double precision agrees with them up to their rounding.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-5)])
def test_golden_performer(dtype, tolerance):
    case = {name: value.to(dtype) for name, value in load_file(GOLDEN / "t2t_performer.safetensors").items()}
    performer = TokenPerformer(27, 8, features=4).to(dtype).eval()
    load_performer(performer, case)
    x = case["x"].requires_grad_()
    y = performer(x)
    assert_close(y, case["y"], tolerance)
    (y * case["grad_out"]).sum().backward()
    assert_close(x.grad, case["grad_x"], tolerance)
    for ours, theirs in PERFORMER.items():
        if ours != "projection":
            assert_close(performer.get_parameter(ours).grad, case[f"grad_{theirs}"], tolerance)
    assert performer.projection.grad is None


def test_golden_tokens_to_token():
    case = load_file(GOLDEN / "t2t_module.safetensors")
    module = TokensToToken(48, embed_dim=10, token_dim=8, random_features=4).eval()
    for number, performer in enumerate(module.performers, 1):
        load_performer(performer, case, f"p{number}_")
    module.proj.load_state_dict({"weight": case["w_e"], "bias": case["b_e"]})
    assert_close(module(case["x"]), case["y"], 1e-6)


def test_golden_sinusoid():
    case = load_file(GOLDEN / "t2t_sinusoid.safetensors")
    assert_close(sinusoid_positions(11, 10), case["pe"], 1e-6)
    assert_close(sinusoid_positions(197, 384)[case["rows"]], case["pe_197x384_rows"], 1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("qk_scale", "name"), [(None, "y"), (12**-0.5, "y_scale_d")])
def test_golden_block(fused, qk_scale, name):
    case = load_file(GOLDEN / "t2t_block.safetensors")
    model = timm.create_model("t2t_vit_14", **TINY, **NATIVE, qk_scale=qk_scale)
    block = model.blocks[0].double().eval()
    block.attn.fused_attn = fused
    linear = {"attn.proj": "o", "mlp.fc1": "1", "mlp.fc2": "2"}
    state = {
        f"{ours}.{kind}": case[f"{kind[0]}_{theirs}"] for ours, theirs in linear.items() for kind in ("weight", "bias")
    }
    state |= {f"norm{i}.{kind}": case[f"ln{i}_{kind[0]}"] for i in (1, 2) for kind in ("weight", "bias")}
    block.load_state_dict(state | {"attn.qkv.weight": case["w_qkv"]})
    x = case["x"].requires_grad_()
    y = block(x)
    assert_close(y, case[name], 1e-9)
    if qk_scale is None:
        (y * case["grad_out"]).sum().backward()
        assert_close(x.grad, case["grad_x"], 1e-9)
        assert_close(block.attn.qkv.weight.grad, case["grad_w_qkv"], 1e-9)
        assert_close(block.mlp.fc1.weight.grad, case["grad_w_1"], 1e-9)


def test_linear_attention_is_the_explicit_sum():
    torch.manual_seed(0)
    performer = TokenPerformer(5, 4, features=3).double()
    q, k, v = torch.randn(3, 1, 6, 4, dtype=torch.float64)
    w = performer.projection

    def phi(x: Tensor) -> Tensor:
        return torch.stack([torch.exp(row @ x - x @ x / 2) / math.sqrt(len(w)) for row in w])

    expected = torch.stack(
        [
            sum(phi(q[0, i]) @ phi(k[0, t]) * v[0, t] for t in range(6))
            / (sum(phi(q[0, i]) @ phi(k[0, t]) for t in range(6)) + 1e-8)
            for i in range(6)
        ]
    )
    torch.testing.assert_close(performer._attend(q, k, v)[0], expected)


def test_random_features_are_orthogonal_frozen_and_saved():
    torch.manual_seed(0)
    model = timm.create_model("t2t_vit_14", **TINY, **NATIVE)
    for performer in model.patch_embed.performers:
        projection = performer.projection
        torch.testing.assert_close(projection @ projection.T, 4 * torch.eye(4))
        assert not projection.requires_grad
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed[0], sinusoid_positions(17, 12))
    assert "patch_embed.performers.0.projection" in model.state_dict()
    assert model.cls_token.std() > 0.005


def test_windows_start_from_the_image_row_by_row():
    module = TokensToToken(16, embed_dim=4, kernels=(3, 3, 3), strides=(1, 2, 2), token_dim=2, random_features=2)
    for performer in module.performers:
        performer.forward = lambda tokens: tokens[..., 4:6]  # the centre of the window, of the first channel
    module.proj = torch.nn.Identity()
    ramp = torch.arange(256.0).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    tokens = module(ramp)
    assert tokens.shape == (1, 16, 18)
    # Stride 4 in all, and every window is centred on its first pixel.
    assert torch.equal(tokens[0, :, 4].reshape(4, 4), ramp[0, 0, ::4, ::4])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_exponentials_are_in_single_precision_under_autocast(dtype):
    torch.manual_seed(0)
    performer = TokenPerformer(6, 4, features=8).eval()
    tokens = 4 * torch.randn(1, 50, 6)
    with torch.autocast("cpu", dtype):
        y = performer(tokens)
    assert y.isfinite().all()
    torch.testing.assert_close(y.float(), performer(tokens), rtol=0.1, atol=0.1)


def test_grid_and_taps():
    torch.manual_seed(0)
    model, images = timm.create_model("t2t_vit_14", **TINY, **NATIVE).eval(), torch.randn(2, 3, 16, 16)
    taps = read_intermediates(model, images, features=[-1], attentions=[0])
    (map_,) = model.forward_intermediates(images, indices=[-1], intermediates_only=True)
    assert map_.shape == (2, 12, 4, 4)
    # Where attention is read, it is computed unfused.
    torch.testing.assert_close(taps.features[0], map_)
    assert taps.tokens.shape == (2, 17, 12)
    assert taps.attentions[0].shape == (2, 3, 17, 17)
    assert model.feature_info[-1] == {"module": "blocks.1", "num_chs": 12, "reduction": 4}


def test_a_wide_image():
    model = timm.create_model("t2t_vit_14", **TINY | {"img_size": (16, 24), "strides": (1, 2, 2)})
    (map_,) = model.forward_intermediates(torch.randn(1, 3, 16, 24), indices=[-1], intermediates_only=True)
    assert map_.shape == (1, 12, 4, 6)


def test_operations_are_counted_without_memory():
    model = timm.create_model("t2t_vit_14", **TINY, **NATIVE)
    found = complexity(model, 16)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["flops"] > 0


def test_sizes():
    assert named_model("t2t_vit_14").takes_image_size
    config = ModelConfig(name="t2t_vit_14", kwargs={**TINY, "strides": (1, 2, 2)})
    with pytest.raises(ConfigError, match="not a multiple of the strides' product 4"):
        create_model(config, num_classes=5, image_size=18, channels=3)
    model = create_model(config, num_classes=5, image_size=16, channels=3)
    with pytest.raises(ValueError, match="built for"):
        model(torch.zeros(1, 3, 32, 32))
