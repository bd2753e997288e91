from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conformance import forked
from vitutor_core.models import involution_operator as module
from vitutor_core.models.involution import Involution, involution, unfolded

CASES = [(1, 3, 5, 7), (1, 7, 9, 4), (2, 3, 6, 10), (2, 7, 8, 6)]  # stride, kernel, height, width


@pytest.fixture(params=["rows", "images"], autouse=True)
def innermost(request, monkeypatch):
    """Every test in both memory layouts."""
    monkeypatch.setattr(module, "SHORT_ROW", 0 if request.param == "rows" else 1000)


def naive(x: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """Six loops, as the formula is written."""
    batch, channels, height, width = x.shape
    groups, taps, rows, columns = kernels.shape[1:]
    size = round(taps**0.5)
    out = x.new_zeros(batch, channels, rows, columns)
    for b, c, i, j in itertools.product(range(batch), range(channels), range(rows), range(columns)):
        for u, v in itertools.product(range(size), range(size)):
            row, column = stride * i + u - size // 2, stride * j + v - size // 2
            if 0 <= row < height and 0 <= column < width:
                out[b, c, i, j] += kernels[b, c * groups // channels, u * size + v, i, j] * x[b, c, row, column]
    return out


def inputs(stride: int, size: int, height: int, width: int, *, batch: int = 2, channels: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(batch, channels, height, width, dtype=torch.float64, requires_grad=True)
    grid = (-(-height // stride), -(-width // stride))
    return x, torch.randn(batch, 2, size**2, *grid, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("stride", "size", "height", "width"), CASES)
def test_equals_the_loops_and_the_unfolded_form_with_gradients(stride, size, height, width):
    x, kernels = inputs(stride, size, height, width)
    with torch.no_grad():
        assert (involution(x, kernels, stride) - naive(x, kernels, stride)).abs().max() < 1e-10
    cotangent = torch.randn(involution(x, kernels, stride).shape, dtype=torch.float64)
    ours = torch.autograd.grad(involution(x, kernels, stride), (x, kernels), cotangent)
    theirs = torch.autograd.grad(unfolded(x, kernels, stride), (x, kernels), cotangent)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() < 1e-10


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("side", [3, 5, 6])
def test_odd_sides_and_any_stride(stride, side):
    x, kernels = inputs(stride, 3, side, side + 1)
    assert (involution(x, kernels, stride) - naive(x, kernels, stride)).abs().max() < 1e-10


@pytest.mark.parametrize("stride", [1, 2])
def test_gradcheck(stride):
    assert torch.autograd.gradcheck(lambda x, k: involution(x, k, stride), inputs(stride, 3, 4, 6))


def test_only_one_gradient():
    x, kernels = inputs(1, 3, 4, 4)
    involution(x.detach(), kernels).sum().backward()
    assert x.grad is None
    assert kernels.grad.shape == kernels.shape


@pytest.mark.parametrize("shape", [(2, 2, 8, 4, 4), (2, 3, 9, 4, 4), (2, 2, 9, 4, 5), (1, 2, 9, 4, 4)])
def test_kernels_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="involution: kernels"):
        involution(torch.zeros(2, 4, 4, 4), torch.zeros(shape))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the check itself looks at
def test_as_an_operator():
    x, kernels = (tensor.detach().float().requires_grad_() for tensor in inputs(2, 3, 4, 6))
    torch.library.opcheck(torch.ops.vitutor.involution.default, (x, kernels, 2))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_without_a_break(backend):
    torch.manual_seed(0)
    layer = Involution(32, 3).double()
    x = torch.randn(2, 32, 5, 5, dtype=torch.float64, requires_grad=True)
    expected = layer.eval()(x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    found = torch.compile(layer, backend=backend, fullgraph=True)(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats(memory_format):
    x, kernels = inputs(1, 3, 5, 7)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    out = involution(x, kernels)
    torch.testing.assert_close(out, unfolded(x, kernels, 1))
    assert out.is_contiguous()


def test_half_precision_is_summed_in_float32():
    x, kernels = (tensor.detach().bfloat16().requires_grad_() for tensor in inputs(1, 7, 9, 9))
    exact = involution(x.double(), kernels.double())
    out = involution(x, kernels)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() <= 2**-8 * exact.abs().max()  # one rounding, of the result
    gradients = torch.autograd.grad(out.float().sum(), (x, kernels))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2


def test_autocast_computes_in_float32():
    torch.manual_seed(0)
    layer = Involution(32, 7).eval()
    x = torch.randn(2, 32, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer.float()(x))
        low = layer(x.bfloat16())
    assert low.dtype == torch.float32
    assert (low - layer(x)).abs().max() <= 2e-2 * layer(x).abs().max()


def test_a_model_in_bfloat16_stays_near():
    torch.manual_seed(0)
    layer = Involution(32, 7).eval()
    x = torch.randn(2, 32, 6, 6)
    expected = layer(x)
    assert (layer.bfloat16()(x.bfloat16()).float() - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize(("channels", "size", "parameters"), [(64, 7, 4388), (128, 7, 17096), (32, 3, 434)])
def test_parameters(channels, size, parameters):
    assert sum(parameter.numel() for parameter in Involution(channels, size).parameters()) == parameters


def test_kernels_have_a_place_for_every_position_and_group():
    torch.manual_seed(0)
    layer = Involution(32, 7, stride=2).eval()
    kernels = layer.kernels(torch.randn(3, 32, 8, 12))
    assert kernels.shape == (3, 2, 49, 4, 6)
    assert not torch.allclose(kernels[:, 0], kernels[:, 1])
    assert not torch.allclose(kernels[..., 0, 0], kernels[..., 1, 1])
    constant = layer.kernels(torch.randn(1, 32, 1, 1).expand(1, 32, 8, 12))
    torch.testing.assert_close(constant, constant[..., :1, :1].expand_as(constant))


def test_channels_of_a_group_share_the_kernel():
    torch.manual_seed(0)
    kernels, x = torch.randn(1, 2, 9, 4, 4), torch.randn(1, 32, 4, 4)
    order = torch.cat([torch.randperm(16), 16 + torch.randperm(16)])
    assert torch.equal(involution(x, kernels)[:, order], involution(x[:, order], kernels))


def generated(bias: Tensor, stride: int) -> Involution:
    """A layer whose kernels are the same everywhere: ``bias``, (groups, K * K)."""
    layer = Involution(32, 3, stride).eval()
    nn.init.zeros_(layer.generate.weight)
    with torch.no_grad():
        layer.generate.bias.copy_(bias.flatten())
    return layer


def test_a_one_at_the_centre_is_the_identity():
    centre = F.one_hot(torch.tensor(4), 9).repeat(2, 1).float()
    x = torch.randn(2, 32, 6, 8)
    assert torch.equal(generated(centre, 1)(x), x)
    assert torch.equal(generated(centre, 2)(x), x[..., ::2, ::2])


def test_constant_kernels_are_a_depthwise_convolution():
    torch.manual_seed(0)
    bias, x = torch.randn(2, 9), torch.randn(2, 32, 6, 8)
    weight = bias.view(2, 1, 3, 3).repeat_interleave(16, dim=0)
    torch.testing.assert_close(generated(bias, 2)(x), F.conv2d(x, weight, stride=2, padding=1, groups=32))


def test_translation_equivariance_inside():
    torch.manual_seed(0)
    layer = Involution(32, 3).eval()
    x = torch.randn(1, 32, 8, 8)
    shifted = layer(x.roll((1, 2), (2, 3)))
    torch.testing.assert_close(shifted[..., 3:-1, 3:-1], layer(x).roll((1, 2), (2, 3))[..., 3:-1, 3:-1])


def test_sizes_it_cannot_take():
    with pytest.raises(ValueError, match="multiple of 16"):
        Involution(24, 3)
    with pytest.raises(ValueError, match="odd kernel"):
        Involution(32, 4)
    with pytest.raises(ValueError, match="7x8"):
        Involution(32, 3, stride=2)(torch.zeros(1, 32, 7, 8))


def test_keeps_a_fraction_of_what_unfold_keeps():
    x, kernels = torch.randn(1, 64, 56, 56, requires_grad=True), torch.randn(1, 4, 49, 56, 56, requires_grad=True)

    def kept(function) -> int:
        storages = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = function(x, kernels, 1)
        assert result.requires_grad
        return sum(storages.values())

    assert kept(involution) == x.nbytes + kernels.nbytes
    assert kept(involution) < 0.15 * kept(unfolded)


def test_its_operations_count_from_the_first_call():
    """In a process of its own: the operators are registered with the first layer."""
    counted = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from vitutor_core.models.involution import Involution
layer = Involution(16, 3)
with FlopCounterMode(display=False) as counter:
    layer(torch.zeros(2, 16, 5, 4))
print(counter.get_total_flops())
"""
    reduce, generate, taps = 16 * 4, 4 * 9, 16 * 9
    assert int(forked.run(counted, check=True).stdout) == 2 * 2 * 5 * 4 * (reduce + generate + taps)
