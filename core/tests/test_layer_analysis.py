"""CKA, Fourier curves and attention entropy against released code and closed forms.

The golden files hold numbers that wangsr126/MAE-Lite (commit a5d1a74, Apache-2.0; CKA, attention) and
xxxnell/how-do-vits-work (commit 9571ff1, Apache-2.0; Fourier) give for seeded inputs; ``expected.plain_*`` are the
definitions without that code's quirks.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from vitutor_core.analysis.attention import attention_distance, attention_entropy
from vitutor_core.analysis.cka import MinibatchCKA, hsic
from vitutor_core.analysis.fourier import log_amplitudes
from vitutor_core.analysis.layers import read_layers
from vitutor_core.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])


def load(name, dtype):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def assert_agrees(got, expected, tolerance):
    assert got.shape == expected.shape
    assert (got.to(expected.dtype) - expected).abs().max() <= tolerance * expected.abs().max()


def cka(first, second):
    found = MinibatchCKA()
    found.add([first], [second])
    return found.result().item()


def gaussians(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_cka_agrees_with_the_library_pytorch_cka():
    from cka import cka_from_features  # which takes half a second

    first = [gaussians(16, 10 + layer, seed=layer) for layer in range(3)]
    second = [x[:, :5] @ gaussians(5, 7, seed=9) + gaussians(16, 7, seed=10 + layer) for layer, x in enumerate(first)]
    found = MinibatchCKA()
    found.add(first, second)
    # The library cuts negative estimates off at 0.
    torch.testing.assert_close(found.result().clamp(min=0), cka_from_features(first, second), rtol=1e-10, atol=0)


@PRECISIONS
def test_cka_over_batches(dtype, tolerance):
    case, found = load("cka_minibatch", dtype), MinibatchCKA()
    for batch in range(3):
        sides = [
            [case[f"input.model{model}_layer{layer}_batch{batch}"] for layer in range(model + 1)] for model in (1, 2)
        ]
        found.add(*sides)
    between, first, second = found.terms()
    assert_agrees(between, case["expected.hsic_kl"], tolerance)
    assert_agrees(first[:, None].expand(2, 3), case["expected.hsic_kk"], tolerance)
    assert_agrees(second[None].expand(2, 3), case["expected.hsic_ll"], tolerance)
    assert_agrees(found.result(), case["expected.cka"], tolerance)


def slow_hsic(first, second):
    """Song et al.'s estimator as the sums over distinct images that it stands for."""
    n = len(first)
    k, m = first.tolist(), second.tolist()
    pairs = sum(k[i][j] * m[i][j] for i in range(n) for j in range(n))
    triples = sum(k[i][j] * m[i][q] for i in range(n) for j in range(n) for q in range(n) if j != q)
    quadruples = sum(
        k[i][j] * m[q][r]
        for i in range(n)
        for j in range(n)
        for q in range(n)
        for r in range(n)
        if len({i, j, q, r}) == 4
    )
    falling = [math.perm(n, count) for count in (2, 3, 4)]
    return pairs / falling[0] + quadruples / falling[2] - 2 * triples / falling[1]


def test_hsic_is_the_unbiased_estimator():
    grams = [x @ x.T for x in (gaussians(6, 3), gaussians(6, 2, seed=1))]
    for gram in grams:
        gram.fill_diagonal_(0)
    assert hsic(grams[0][None], grams[1][None]).item() == pytest.approx(slow_hsic(*grams), rel=1e-10)


def test_cka_of_a_layer_with_itself_and_its_invariances():
    x, y = gaussians(32, 10), gaussians(32, 7, seed=1) + gaussians(32, 10) @ gaussians(10, 7, seed=2)
    turn = torch.linalg.qr(gaussians(7, 7, seed=3)).Q
    value = cka(x, y)
    assert cka(x, x) == pytest.approx(1.0, abs=1e-12)
    assert cka(y, x) == pytest.approx(value, abs=1e-12)
    for changed in (y @ turn, 3.0 * y, y + 5.0):
        assert cka(x, changed) == pytest.approx(value, abs=1e-6)
    assert abs(cka(x, y * torch.linspace(0.1, 4, 7, dtype=torch.float64)) - value) > 0.01


def test_independent_features_have_no_cka_on_average():
    unbiased, biased = [], []
    for seed in range(200):
        x, y = gaussians(64, 20, seed=2 * seed), gaussians(64, 20, seed=2 * seed + 1)
        unbiased.append(cka(x, y))
        centred = [z - z.mean(0) for z in (x, y)]
        cross = [(a.T @ b).square().sum() for a in centred for b in centred]
        biased.append((cross[1] / (cross[0] * cross[3]).sqrt()).item())
    assert abs(sum(unbiased) / 200) < 0.01
    assert sum(biased) / 200 > 0.1


def test_cka_needs_four_images():
    with pytest.raises(ConfigError, match="at least 4 images"):
        cka(gaussians(3, 5), gaussians(3, 5))
    assert math.isnan(cka(torch.zeros(8, 5), gaussians(8, 5)))


@PRECISIONS
@pytest.mark.parametrize("name", ["tokens_noise", "tokens_smooth", "map_6x6"])
def test_fourier_curve(name, dtype, tolerance):
    case = load("fourier_log_amplitude", dtype)
    maps = case[f"input.{name}"]
    if maps.ndim == 3:
        maps = maps.transpose(1, 2).unflatten(2, (14, 14))
    curve = log_amplitudes(maps)
    assert_agrees(curve, case[f"expected.curve_{name}"], tolerance)
    assert_agrees(curve[-1], case[f"expected.plotted_{name}"], tolerance)


def test_fourier_curves_of_known_maps():
    constant = torch.ones(1, 1, 14, 14, dtype=torch.float64)
    expected = math.log(1e-6) - math.log(196 + 1e-6)
    assert log_amplitudes(constant)[1:].tolist() == pytest.approx([expected] * 6, abs=1e-6)
    assert expected == pytest.approx(-19.094, abs=1e-3)
    noise = gaussians(400, 8, 14, 14)
    assert log_amplitudes(noise)[-1].item() == pytest.approx(0.35, abs=0.03)
    assert log_amplitudes(noise, true_nyquist=True)[-1].item() == pytest.approx(0.0, abs=0.03)
    sign = 1 - 2 * (torch.arange(14) % 2)
    board = (sign[:, None] * sign).double()[None, None]
    assert log_amplitudes(board)[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert log_amplitudes(board, true_nyquist=True)[-1].item() == pytest.approx(-expected, abs=1e-3)
    blurred = sum(noise.roll((i, j), (2, 3)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    assert log_amplitudes(blurred)[-1] < -1


@pytest.mark.parametrize(("shape", "nyquist"), [((1, 1, 4, 5), False), ((1, 4, 4), False), ((1, 1, 5, 5), True)])
def test_maps_without_a_curve(shape, nyquist):
    with pytest.raises(ValueError, match="log_amplitudes"):
        log_amplitudes(torch.zeros(shape), true_nyquist=nyquist)


@PRECISIONS
def test_attention_distance_and_entropy(dtype, tolerance):
    case = load("attention_distance_entropy", dtype)
    maps = [case[f"input.logits_batch{batch}"].softmax(-1) for batch in (1, 2)]
    measures = {
        "plain_distance_grid": lambda a: attention_distance(a, (5, 5), 1),
        "plain_entropy": lambda a: attention_entropy(a, (5, 5), 1),
        "released_distance": lambda a: attention_distance(a, (5, 5), 1, patch_size_px=14),
        "released_entropy": lambda a: attention_entropy(a, (5, 5), 1, epsilon=1e-6),
    }
    for name, measure in measures.items():
        assert_agrees((measure(maps[0]) + measure(maps[1])) / 2, case[f"expected.{name}"], tolerance)


def test_attention_of_known_heads():
    uniform = torch.full((1, 1, 197, 197), 1 / 197, dtype=torch.float64)
    assert attention_entropy(uniform, (14, 14), 1).item() == pytest.approx(math.log(196), abs=1e-12)
    assert attention_entropy(uniform, (14, 14), 1, epsilon=1e-6).item() == pytest.approx(5.27792, abs=1e-5)
    assert attention_distance(uniform, (14, 14), 1).item() == pytest.approx(7.28076, abs=1e-5)
    identity = torch.eye(197, dtype=torch.float64)[None, None]
    assert attention_entropy(identity, (14, 14), 1).item() == 0.0
    assert attention_distance(identity, (14, 14), 1).item() == 0.0


def test_attention_distance_is_the_same_on_a_turned_grid():
    attention = gaussians(2, 3, 25, 25).softmax(-1)
    turned = torch.arange(25).view(5, 5).rot90().flatten()
    again = attention[:, :, turned][..., turned]
    torch.testing.assert_close(attention_distance(again, (5, 5), 0), attention_distance(attention, (5, 5), 0))
    torch.testing.assert_close(attention_entropy(again, (5, 5), 0), attention_entropy(attention, (5, 5), 0))


def small_vit(**kwargs):
    settings = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, **kwargs}
    return timm.create_model("vit_tiny_patch16_224", **settings).eval()


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_layers_of_a_vit(pool):
    model, images = small_vit(global_pool=pool), torch.randn(2, 3, 16, 16)
    torch.nn.init.normal_((model.norm if pool == "token" else model.fc_norm).weight)
    layers = read_layers(model.train(), images)
    assert model.training  # as before
    model.eval()
    assert layers.names == ("embedding", "block 1", "block 2", "block 3")
    x = model._pos_embed(model.patch_embed(images))
    for index, block in enumerate(model.blocks):
        torch.testing.assert_close(layers.maps[index], x[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
        torch.testing.assert_close(layers.features[index], block.norm1(x)[:, 1:])
        x = block(x)
    torch.testing.assert_close(layers.maps[3], x[:, 1:].transpose(1, 2).reshape(2, 24, 4, 4))
    torch.testing.assert_close(layers.features[3], model.fc_norm(model.norm(x))[:, 1:])
    plain = torch.nn.functional.layer_norm(x, (24,), eps=1e-6)[:, 1:]
    torch.testing.assert_close(read_layers(model, images, untrained_norm=True).features[3], plain)
    assert [attention.shape for attention in layers.attentions] == [(2, 2, 17, 17)] * 3


def test_layers_of_a_cnn():
    model = timm.create_model("resnet8_tiny", num_classes=4)
    layers = read_layers(model, torch.randn(2, 3, 16, 16))
    assert len(layers.names) == len(layers.maps) == len(layers.features) > 2
    assert layers.attentions == ()
