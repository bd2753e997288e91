from __future__ import annotations

import math

import pytest
import torch
from timm.layers import Attention
from torch.nn import functional as F

from dearkd.models import MHCA

GRID = (8, 9)


def randomised(*, dim: int = 18, heads: int = 9, dtype: torch.dtype = torch.float64, **options) -> MHCA:
    torch.manual_seed(0)
    layer = MHCA(dim, heads, GRID, **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in (layer.qkv.weight, layer.qkv.bias, layer.proj.weight, layer.proj.bias):
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 else 0.1))
    return layer


@torch.no_grad()
def positional_only(layer: MHCA, alpha: float) -> MHCA:
    """Set W_q = W_k = 0, so that attention is the softmax of the bias alone."""
    dim = layer.qkv.in_features
    layer.qkv.weight[: 2 * dim] = 0
    layer.qkv.bias[: 2 * dim] = 0
    layer.alpha.fill_(alpha)
    return layer


def tokens(*, batch: int = 2, dim: int = 18, prefix: int = 1, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, prefix + GRID[0] * GRID[1], dim, generator=generator, dtype=torch.float64).to(dtype)


def as_map(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], -1, *GRID)


def convolution(layer: MHCA, x: torch.Tensor, mode: str) -> torch.Tensor:
    """The convolution of the theorem: tap delta_h has the matrix W_O^h W_V^h, no flip."""
    dim, heads = layer.qkv.in_features, layer.num_heads
    side = math.isqrt(heads)
    value = layer.qkv.weight[2 * dim :].reshape(heads, dim // heads, dim)
    out = layer.proj.weight.reshape(dim, heads, dim // heads)
    kernel = x.new_zeros(dim, dim, side, side)
    for head, (row, column) in enumerate(layer.delta.long().tolist()):
        kernel[:, :, row + 1, column + 1] = out[:, head] @ value[head]
    bias = layer.proj.weight @ layer.qkv.bias[2 * dim :] + layer.proj.bias
    after = side - 2
    return F.conv2d(F.pad(as_map(x), (1, after, 1, after), mode=mode), kernel, bias)


@pytest.mark.parametrize(
    ("heads", "dim", "dtype", "alpha", "tolerance"),
    [
        (9, 18, torch.float64, 50.0, 1e-13),
        (16, 32, torch.float64, 50.0, 1e-13),
        (9, 18, torch.float32, 50.0, 1e-5),
    ],
)
def test_convolution_theorem(heads, dim, dtype, alpha, tolerance):
    layer = positional_only(randomised(dim=dim, heads=heads, dtype=dtype, num_prefix=0, rpe_init="int"), alpha)
    x = tokens(dim=dim, prefix=0, dtype=dtype)
    got, expected = as_map(layer(x)), convolution(layer, x, "replicate")
    assert (got - expected).abs().max() < tolerance


def test_leakage_to_other_taps_decays_as_the_exponential_of_alpha():
    errors = []
    for alpha in (10.0, 20.0):
        layer = positional_only(randomised(num_prefix=0, rpe_init="int"), alpha)
        x = tokens(prefix=0)
        errors.append((as_map(layer(x)) - convolution(layer, x, "replicate")).abs().max().item())
    assert errors[0] < 5e-3
    assert errors[0] / errors[1] == pytest.approx(math.exp(10), rel=0.01)


def test_convolution_theorem_needs_replicated_borders():
    layer = positional_only(randomised(num_prefix=0, rpe_init="int"), 50.0)
    x = tokens(prefix=0)
    error = (as_map(layer(x)) - convolution(layer, x, "constant")).abs()
    assert error[..., 1:-1, 1:-1].max() < 1e-13
    assert error.max() > 0.1


def test_positional_attention_commutes_with_shifts_in_the_interior():
    layer = positional_only(randomised(num_prefix=0, rpe_init="int"), 5.0)
    x = tokens(prefix=0)
    shifted = as_map(x).roll((1, 1), (2, 3)).flatten(2).transpose(1, 2)
    a = as_map(layer(x)).roll((1, 1), (2, 3))[..., 3:-2, 3:-2]
    b = as_map(layer(shifted))[..., 3:-2, 3:-2]
    # Keys that differ are at least two patches from the centre of every head.
    assert (a - b).abs().max() < 20 * math.exp(-5 * 4)
    assert (as_map(layer(x)).roll((1, 1), (2, 3)) - as_map(layer(shifted))).abs().max() > 0.1


def attention_of(delta: tuple[float, float], alpha: float = 50.0) -> torch.Tensor:
    """Attention (N, N) of one head with zero content, class token in front."""
    layer = MHCA(4, 1, GRID).double().eval()
    with torch.no_grad():
        layer.alpha.fill_(alpha)
        layer.delta.copy_(torch.tensor([delta]))
    return layer.position_bias()[0, 0].softmax(-1)


def test_class_token_ties_with_centred_heads_and_loses_to_others():
    interior = 1 + 2 * GRID[1] + 3
    centred = attention_of((0, 0))[interior]
    assert centred[0].item() == pytest.approx(0.5, abs=1e-12)
    assert centred[interior].item() == pytest.approx(0.5, abs=1e-12)
    above = attention_of((-1, 0))[interior]
    assert above[interior - GRID[1]].item() == pytest.approx(1, abs=1e-12)
    count = 1 + GRID[0] * GRID[1]
    torch.testing.assert_close(attention_of((-1, 0))[0], torch.full((count,), 1 / count, dtype=torch.float64))


@pytest.mark.parametrize("fused", [True, False])
def test_without_bias_it_is_timms_attention(fused):
    layer = randomised(dim=18, heads=3)
    with torch.no_grad():
        layer.alpha.zero_()
    plain = Attention(18, num_heads=3, qkv_bias=True).double().eval()
    missing, unexpected = layer.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing) == {"alpha", "delta"}
    assert unexpected == []
    layer.fused_attn = plain.fused_attn = fused
    x = tokens()
    count = x.shape[1]
    boolean = torch.rand(count, count, generator=torch.Generator().manual_seed(2)) > 0.3
    boolean.fill_diagonal_(True)
    for arguments in (
        {},
        {"is_causal": True},
        {"attn_mask": boolean},
        {"attn_mask": torch.randn(count, count).double()},
    ):
        torch.testing.assert_close(layer(x, **arguments), plain(x, **arguments), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [None, torch.linspace(-1, 1, 73 * 73).reshape(73, 73).double()])
def test_fused_attention_equals_the_definition(mask):
    layer = randomised(heads=3)
    x = tokens()
    q, k, v = layer.qkv(x).reshape(2, 73, 3, 3, 6).permute(2, 0, 3, 1, 4)
    logits = (
        torch.einsum("bhic,bhjc->bhij", q, k) / math.sqrt(6) + layer.position_bias() + (0 if mask is None else mask)
    )
    heads = torch.einsum("bhij,bhjc->bihc", logits.softmax(-1), v).reshape(2, 73, 18)
    expected = F.linear(heads, layer.proj.weight, layer.proj.bias)
    for fused in (True, False):
        layer.fused_attn = fused
        torch.testing.assert_close(layer(x, attn_mask=mask), expected, rtol=0, atol=1e-12)


def gradients(layer: MHCA, x: torch.Tensor) -> list[torch.Tensor]:
    layer.zero_grad()
    layer(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in layer.parameters()]


def test_gradients_of_both_paths_agree_in_float32():
    layer, explicit = randomised(dtype=torch.float32), randomised(dtype=torch.float32, attn_impl="math")
    x = tokens(dtype=torch.float32)
    torch.testing.assert_close(layer(x), explicit(x), rtol=0, atol=1e-5)
    for a, b in zip(gradients(layer, x), gradients(explicit, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("attn_impl", ["sdpa", "math"])
@pytest.mark.parametrize("alpha_param", ["free", "softplus"])
def test_gradients_match_finite_differences(attn_impl, alpha_param):
    torch.manual_seed(0)
    layer = MHCA(4, 2, (2, 3), attn_impl=attn_impl, alpha_param=alpha_param, rpe_init="random").double().eval()
    x = torch.randn(1, 7, 4, dtype=torch.float64, requires_grad=True)

    def function(x, alpha, delta):
        return torch.func.functional_call(layer, {"alpha": alpha, "delta": delta}, (x,))

    alpha, delta = (value.detach().clone().requires_grad_() for value in (layer.alpha, layer.delta))
    assert torch.autograd.gradcheck(function, (x, alpha, delta))


@pytest.mark.parametrize("attn_impl", ["sdpa", "math"])
def test_compiles_to_one_graph(attn_impl):
    layer = randomised(dtype=torch.float32, attn_impl=attn_impl, rpe_drop=0.0).train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = tokens(dtype=torch.float32)
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-5)
    expected = gradients(layer, x)
    layer.zero_grad()
    compiled(x).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("mode", ["head", "element"])
def test_compiles_to_one_graph_with_dropout_of_the_bias(mode):
    layer = randomised(dtype=torch.float32, rpe_drop=0.5, rpe_drop_mode=mode).train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = tokens(dtype=torch.float32)
    assert not torch.equal(compiled(x), compiled(x))
    layer.eval()
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["head", "element"])
def test_dropout_of_the_bias_is_the_identity_in_evaluation(mode):
    layer, without = randomised(rpe_drop=0.9, rpe_drop_mode=mode), randomised(rpe_drop=0.0)
    x = tokens()
    assert torch.equal(layer(x), without(x))
    assert not torch.equal(layer.train()(x), without.train()(x))


def test_head_dropout_keeps_or_zeroes_whole_heads():
    layer = randomised(rpe_drop=0.3).train()
    bias = layer.position_bias()
    kept, mixed = 0, 0
    torch.manual_seed(0)
    for _ in range(100):
        dropped = layer._drop_bias(bias)
        alive = [bool((dropped[0, head] != 0).any()) for head in range(9)]
        for head in range(9):
            assert torch.equal(dropped[0, head], bias[0, head] if alive[head] else torch.zeros_like(bias[0, head]))
        kept += sum(alive)
        mixed += len(set(alive)) == 2
    # 900 Bernoulli draws: five standard deviations are 0.077.
    assert kept / 900 == pytest.approx(0.7, abs=0.077)
    # Heads are independent: 9 alike have probability 0.04.
    assert mixed > 80


def test_all_heads_dropped_is_attention_by_content():
    layer = randomised(rpe_drop=1.0).train()
    content = randomised(rpe_drop=0.0)
    with torch.no_grad():
        content.alpha.zero_()
    torch.testing.assert_close(layer(tokens()), content(tokens()), rtol=0, atol=1e-12)


def test_element_dropout_is_torchs_dropout():
    layer = randomised(rpe_drop=0.3, rpe_drop_mode="element").train()
    bias = layer.position_bias()
    torch.manual_seed(4)
    got = layer._drop_bias(bias)
    torch.manual_seed(4)
    assert torch.equal(got, torch.nn.Dropout(0.3)(bias))


def test_bias_is_cast_last_under_autocast():
    layer = randomised(dtype=torch.float32)
    x = tokens(dtype=torch.float32)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.position_bias().dtype == torch.float32
        got = layer(x)
    assert got.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; outputs are of the order of 1.
    assert (got - expected).abs().max() < 2**-6 * expected.abs().max()


def test_delta_may_be_fixed():
    layer = randomised(learn_delta=False)
    assert {name for name, _ in layer.named_parameters() if "." not in name} == {"alpha"}
    assert torch.equal(layer.delta, randomised().delta)
    assert layer.state_dict().keys() == randomised().state_dict().keys()
    assert torch.equal(layer(tokens()), randomised()(tokens()))


@pytest.mark.parametrize("rpe_init", ["disc", "convit", "random"])
def test_softplus_keeps_the_initial_strength(rpe_init):
    torch.manual_seed(0)
    free = MHCA(12, 12, GRID, rpe_init=rpe_init).double()
    torch.manual_seed(0)
    positive = MHCA(12, 12, GRID, rpe_init=rpe_init, alpha_param="softplus").double()
    torch.testing.assert_close(positive.position_bias(), free.position_bias(), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        positive.alpha.fill_(-30)
    assert (F.softplus(positive.alpha) > 0).all()
    assert positive.position_bias().abs().max() < 1e-9


def test_value_projection_may_start_as_the_identity():
    layer = MHCA(18, 9, GRID, value_identity_init=True)
    assert torch.equal(layer.qkv.weight[36:], torch.eye(18))
    assert not torch.equal(layer.qkv.weight[:18], torch.eye(18))


def test_mistakes():
    layer = randomised()
    with pytest.raises(ValueError, match=r"74 tokens do not fit the grid \(8, 9\) with 1 in front"):
        layer(torch.zeros(1, 74, 18, dtype=torch.float64))
    with pytest.raises(ValueError, match="width 10 is not a multiple of 3 heads"):
        MHCA(10, 3, GRID)
    for option in ("rpe_drop_mode", "rpe_init", "alpha_param", "attn_impl"):
        with pytest.raises(ValueError, match=f"{option} = 'wrong'; choose one of"):
            MHCA(12, 3, GRID, **{option: "wrong"})
