"""Agreement with values that the released code computed; pairs are inputs, so no generator has to be matched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from drloc.losses import ce_loss, l1_loss, reg_loss
from drloc.models import OffsetClassHead, OffsetHead, pool_grid
from drloc.pairs import Pairs, offsets, pair_tokens, scale
from drloc.schedule import loss_weight
from vitutor_core.schema import OptimConfig
from vitutor_core.train import optim
from vitutor_core.train.method import Clock

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def load(name, dtype=torch.float64):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.to(dtype) if value.dtype == torch.float64 else value for key, value in tensors.items()}


def assert_agrees(got, expected, tolerance):
    assert got.shape == expected.shape
    bound = tolerance * (float(expected.abs().max()) or 1.0)
    assert (got - expected).abs().max() <= bound


def linears(head):
    """The linear layers of a head by the names of the cases."""
    found = dict(enumerate((m for m in head.modules() if isinstance(m, nn.Linear)), 1))
    if isinstance(head, OffsetClassHead):
        found["u"], found["v"] = found.pop(4), found.pop(5)
    return found


def loaded(head, case):
    head.to(case["w_1"].dtype)
    for name, linear in linears(head).items():
        linear.load_state_dict({"weight": case[f"w_{name}"], "bias": case[f"b_{name}"]})
    return head


def assert_gradients(head, case, tolerance):
    for name, linear in linears(head).items():
        assert_agrees(linear.weight.grad, case[f"grad_w_{name}"], tolerance)
        assert_agrees(linear.bias.grad, case[f"grad_b_{name}"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_head(dtype, tolerance):
    case = load("head_f_width24", dtype)
    head, e = loaded(OffsetHead(7, hidden=24), case), case["e"].requires_grad_()
    y = head(e)
    assert_agrees(y, case["y"], tolerance)
    (y * case["grad_out"]).sum().backward()
    assert_agrees(e.grad, case["grad_e"], tolerance)
    assert_gradients(head, case, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_head_of_the_real_width(dtype, tolerance):
    case, head = load("head_f_width512", dtype), OffsetHead(9).to(dtype)
    assert sum(p.numel() for p in head.parameters()) == 273_410
    with torch.no_grad():
        for number, (s, a) in enumerate(((3, 0.3), (11, 0.08), (29, 0.1)), 1):
            linear = linears(head)[number]
            i, j = torch.arange(linear.out_features), torch.arange(linear.in_features)
            weight = ((37 * i[:, None] + 101 * j + s) % 257 - 128).to(torch.float64) / 128 * a
            assert_agrees(weight[:4, :5].to(dtype), case[f"w_{number}_corner"], tolerance)
            linear.weight.copy_(weight)
            linear.bias.copy_(((53 * i + s) % 101 - 50).to(torch.float64) / 50 * 0.1)
    e = case["e"].requires_grad_()
    y = head(e)
    assert_agrees(y, case["y"], tolerance)
    (y * case["grad_out"]).sum().backward()
    assert_agrees(e.grad, case["grad_e"], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("name", "k", "signed"), [("l1_abs_k7", 7, False), ("l1_signed_k7", 7, True), ("l1_abs_k6", 6, False)]
)
def test_l1(name, k, signed, dtype, tolerance):
    case = load(name, dtype)
    head, grid, pairs = (
        loaded(OffsetHead(5, hidden=24), case),
        case["grid"].requires_grad_(),
        Pairs(case["r"], case["c"]),
    )
    predicted = head(pair_tokens(grid, pairs))
    cells = offsets(pairs, signed=signed)
    targets = scale((k, k), unit="cells", signed=signed).targets(cells).to(dtype)
    assert_agrees(predicted, case["pred"], tolerance)
    assert torch.equal(targets, case["target"])
    normalised = scale((k, k), unit="k-1", signed=signed).targets(cells)
    torch.testing.assert_close(normalised, case["target_normalized"])
    loss = l1_loss(predicted, targets, reduction="mean_axes")
    assert_agrees(loss[None], case["loss"], tolerance)
    assert_agrees(0.31 * loss[None], case["loss_weighted"], tolerance)
    loss.backward()
    assert_agrees(grid.grad, case["grad_grid"], tolerance)
    assert_gradients(head, case, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("classes", [7, 13, 27])
@pytest.mark.parametrize("variant", ["ce", "cbr"])
def test_class_variants(variant, classes, dtype, tolerance):
    signed = classes > 7
    case = load(f"{variant}_{'signed' if signed else 'abs'}_c{classes}", dtype)
    head = loaded(OffsetClassHead(5, (classes, classes), hidden=24), case)
    grid, pairs = case["grid"].requires_grad_(), Pairs(case["r"], case["c"])
    logits = head(pair_tokens(grid, pairs))
    targets = scale((7, 7), unit="cells", signed=signed).targets(offsets(pairs, signed=signed)).long()
    assert torch.equal(targets, case["target"])
    assert_agrees(torch.stack(logits, dim=-1), case["logits"], tolerance)
    loss = ce_loss(logits, targets) if variant == "ce" else reg_loss(logits, targets)
    assert_agrees(loss[None], case["loss"], tolerance)
    loss.backward()
    assert_agrees(grid.grad, case["grad_grid"], tolerance)
    assert_gradients(head, case, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_grids_are_summed(dtype, tolerance):
    case = load("l1_two_grids", dtype)
    predicted = [case[f"pred_{i}"].view(2, 9, 2).requires_grad_() for i in (0, 1)]
    losses = [l1_loss(p, case[f"target_{i}"].view(2, 9, 2), reduction="mean_axes") for i, p in enumerate(predicted)]
    weighted = 0.4 * torch.stack(losses).sum()
    assert_agrees(weighted[None], case["loss_weighted"], tolerance)
    weighted.backward()
    for i, p in enumerate(predicted):
        assert_agrees(p.grad.view(18, 2), case[f"grad_pred_{i}"], tolerance)


@pytest.mark.parametrize(
    ("name", "weight", "total"), [("0p5_E300", 0.5, 300), ("0p1_E300", 0.1, 300), ("0p5_E100", 0.5, 100)]
)
def test_lambda(name, weight, total):
    expected = load("lambda_schedule")[f"lambda_{name}"]
    found = [
        loss_weight(weight, epoch, schedule="ramp", warmup_epochs=20, total_epochs=total) for epoch in range(total + 1)
    ]
    assert_agrees(torch.tensor(found, dtype=torch.float64), expected, 1e-12)


@pytest.mark.parametrize("side", [14, 6])
def test_released_pooling(side):
    case = load("grid_pool_3x3")
    x = case[f"x_{side}"].requires_grad_()
    y = pool_grid(x, max_side=side // 2, kind="3x3")
    assert_agrees(y, case[f"y_{side}"], 1e-9)
    (y * case[f"grad_out_{side}"]).sum().backward()
    assert_agrees(x.grad, case[f"grad_x_{side}"], 1e-9)


@pytest.mark.parametrize(("name", "batch", "updates"), [("g8", 1024, 48), ("g1", 128, 390)])
def test_learning_rate(name, batch, updates):
    """The released code sets the rate after an update, so its update s has the rate of our max(s - 1, 0)."""
    case, factor = load("lr_schedule"), batch / 512
    config = OptimConfig(
        lr=5e-4,
        lr_reference_batch=512,
        warmup_epochs=20,
        schedule_unit="update",
        warmup_lr=5e-7 * factor,
        min_lr=5e-6 * factor,
    )
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=optim.peak_lr(config, batch))
    schedule = optim.build_schedule(optimizer, config, 300, updates)

    def rate(step):
        optim.set_learning_rate(schedule, Clock(step, updates, 300 * updates))
        return optimizer.param_groups[0]["lr"]

    found = [rate(step) for step in case[f"{name}_t"].tolist()]
    assert_agrees(torch.tensor(found, dtype=torch.float64), case[f"{name}_f"], 1e-9)
    released = [rate(max(step - 1, 0)) for step in case[f"{name}_step"].tolist()]
    assert_agrees(torch.tensor(released, dtype=torch.float64), case[f"{name}_lr_in_force"], 1e-9)
