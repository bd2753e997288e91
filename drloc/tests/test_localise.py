"""The plug-in on real backbones: grids, heads, gradients, and a model that is left as it was."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import vitutor_core.models  # noqa: F401  # registers CvT and T2T-ViT with timm
from drloc import DRLoc, LossConfig
from drloc.models import pool_grid
from drloc.pairs import Pairs, offsets
from vitutor_core.errors import ConfigError

SMALL = {
    "vit": ("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4},
    ),
    "cvt": ("cvt_13", {"dims": (8, 16), "depths": (1, 1), "num_heads": (1, 2), "kernels": (3, 3), "strides": (2, 2)}),
    "t2t": (
        "t2t_vit_14",
        {"img_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "strides": (2, 2, 1), "kernels": (3, 3, 3)},
    ),
    "resnet": ("resnet8_tiny", {}),
}
DIMS = {"vit": 16, "swin": 16, "cvt": 16, "t2t": 16, "resnet": 64}
ANY = pytest.mark.parametrize("family", SMALL)


def build(family, **changes):
    torch.manual_seed(0)
    name, kwargs = SMALL[family]
    return timm.create_model(name, num_classes=5, **kwargs | changes)


def images(count=2):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def grids_of(drloc, model, batch):
    return drloc.grids(model, batch)[1]


# --- grids


FULL = [
    ("swin_tiny_patch4_window7_224", {}, 768, 7, 1_050_626, 28_288_354),
    ("resnet50", {}, 2048, 7, 2_361_346, 25_557_032),
    ("vit_base_patch16_224", {}, 768, 14, 1_050_626, 86_567_656),
    ("t2t_vit_14", {}, 384, 14, 657_410, 21_545_550),
    ("cvt_13", {"flavour": "avg_pool"}, 384, 14, 657_410, 19_936_296),
    ("cvt_13", {}, 384, 14, 657_410, 19_997_480),
]


@pytest.mark.parametrize(("name", "kwargs", "dim", "side", "in_head", "in_model"), FULL)
def test_heads_of_the_papers_backbones(name, kwargs, dim, side, in_head, in_model):
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
        pooled, raw = DRLoc(model), DRLoc(model, LossConfig(max_side=None))
        batch = torch.empty(2, 3, 224, 224)
        assert grids_of(pooled, model, batch)[0].shape == (2, dim, 7, 7)
        assert grids_of(raw, model, batch)[0].shape == (2, dim, side, side)
    assert count(pooled) == 1024 * dim + 264_194 == in_head
    assert count(model) == in_model  # what is left at inference


@pytest.mark.parametrize(("classes", "parameters"), [(7, 1_319_438), (13, 1_325_594)])
def test_class_heads_of_swin(classes, parameters):
    with torch.device("meta"):
        drloc = DRLoc(timm.create_model(FULL[0][0]), LossConfig(variant="ce", signed=classes == 13))
    assert count(drloc) == 1024 * 768 + 525_824 + 1026 * classes == parameters


@ANY
def test_the_grid_is_that_of_the_network_row_by_row(family):
    model = build(family).eval()
    drloc, found = DRLoc(model), []
    place = model.feature_info[-1]["module"]
    model.get_submodule(place).register_forward_hook(lambda _m, _i, out: found.append(out))
    (grid,) = grids_of(drloc, model, images())
    assert grid.shape == (2, DIMS[family], 4, 4)
    raw = found[-1]
    prefix = getattr(model, "num_prefix_tokens", 0)
    for n in range(16):
        row, column = divmod(n, 4)
        if raw.ndim == 3:
            expected = raw[:, prefix + n]
        else:
            expected = raw[:, row, column] if family == "swin" else raw[:, :, row, column]
        assert torch.equal(grid[:, :, row, column], expected)


@pytest.mark.parametrize("family", ["vit", "swin", "t2t", "cvt"])
def test_behind_the_final_norm(family):
    model = build(family).eval()
    before, after = (DRLoc(model, LossConfig(after_norm=flag)) for flag in (False, True))
    (grid,), (normed,) = grids_of(before, model, images()), grids_of(after, model, images())
    expected = model.norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(normed, expected)
    assert not torch.equal(normed, grid)


@pytest.mark.parametrize("family", ["vit", "t2t", "cvt"])
def test_the_class_token_is_not_in_the_grid(family):
    model = build(family).train(False)
    drloc = DRLoc(model, LossConfig(after_norm=family == "t2t"))
    last = model.get_submodule(model.feature_info[-1]["module"])
    (before,) = grids_of(drloc, model, images())
    last.register_forward_hook(lambda _m, _i, out: torch.cat([out[:, :1] + 1, out[:, 1:]], dim=1))
    assert torch.equal(grids_of(drloc, model, images())[0], before)


def test_grids_of_all_blocks():
    model = build("swin").eval()
    drloc = DRLoc(model, LossConfig(grids="blocks", max_side=None))
    shapes = [tuple(grid.shape[1:]) for grid in grids_of(drloc, model, images())]
    assert shapes == [(8, 8, 8), (8, 8, 8), (16, 4, 4), (16, 4, 4)]
    assert len({id(head) for head in drloc.heads}) == 4
    assert [count(head) for head in drloc.heads] == [1024 * dim + 264_194 for dim in (8, 8, 16, 16)]
    generator = torch.Generator().manual_seed(0)
    total = drloc(model, images(), generator).loss
    generator.manual_seed(0)
    parts = []
    for head, grid in zip(drloc.heads, grids_of(drloc, model, images()), strict=True):
        single = DRLoc(model)
        single.heads = nn.ModuleList([head])
        parts.append(single.localise([grid], generator).loss)
    torch.testing.assert_close(total, torch.stack(parts).sum())
    with pytest.raises(ConfigError, match="ResNet has no transformer blocks"):
        DRLoc(build("resnet"), LossConfig(grids="blocks"))


def test_grids_by_name_are_those_of_the_released_multiscale_mode():
    names = ("layers.1.downsample", "layers.2.downsample", "layers.3.downsample", "layers.3")
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224")
        drloc = DRLoc(model, LossConfig(grids=names, max_side=None))
        shapes = [tuple(grid.shape[1:]) for grid in grids_of(drloc, model, torch.empty(1, 3, 224, 224))]
    assert shapes == [(192, 28, 28), (384, 14, 14), (768, 7, 7), (768, 7, 7)]


def test_pooling():
    grid = torch.randn(2, 3, 14, 14)
    two, three = pool_grid(grid, max_side=7), pool_grid(grid, max_side=7, kind="3x3")
    assert two.shape == three.shape == (2, 3, 7, 7)
    assert not torch.allclose(two, three)
    torch.testing.assert_close(two[:, :, 1, 2], grid[:, :, 2:4, 4:6].mean((2, 3)))
    torch.testing.assert_close(three[:, :, 0, 0], grid[:, :, :2, :2].mean((2, 3)))
    for kind in ("2x2", "3x3"):
        torch.testing.assert_close(pool_grid(torch.ones(1, 1, 14, 14), max_side=7, kind=kind), torch.ones(1, 1, 7, 7))
    assert pool_grid(grid, max_side=None) is grid
    assert pool_grid(grid, max_side=14) is grid
    assert pool_grid(grid, max_side=6).shape[-1] == 3


def test_a_grid_of_one_cell_is_refused():
    with pytest.raises(ConfigError, match="1 x 1: no offsets"):
        DRLoc(build("cvt", strides=(4, 4)), input_size=(3, 16, 16))


def test_one_channel_and_a_wide_image():
    torch.manual_seed(0)
    model = timm.create_model("resnet8_tiny", in_chans=1).train()
    model.bn1.eval()  # a frozen part stays as it is
    drloc = DRLoc(model, input_size=(1, 16, 24))
    assert model.training
    assert not model.bn1.training
    (grid,) = grids_of(drloc, model, torch.randn(2, 1, 16, 24))
    assert grid.shape == (2, 64, 4, 6)
    assert drloc(model, torch.randn(2, 1, 16, 24)).loss > 0


# --- losses on models


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("variant", ["l1", "ce", "reg"])
def test_every_variant_on_a_model(variant, signed):
    model = build("vit")
    drloc = DRLoc(model, LossConfig(variant=variant, signed=signed, head_init="default"))
    out = drloc(model, images())
    assert out.loss.requires_grad
    assert not out.error.requires_grad
    assert 0 < out.error < 4
    out.loss.backward()
    assert all(parameter.grad.any() for parameter in drloc.parameters())
    assert model.patch_embed.proj.weight.grad.any()


@pytest.mark.parametrize(("unit", "initial"), [("cells", 1.25), ("k", 1.25), ("k-1", 1.25)])
def test_at_the_start_nothing_is_known(unit, initial):
    """Heads of standard deviation 0.02 predict about 0, so the error is E|i - p| = (k^2 - 1) / (3k) = 1.25 cells."""
    model = build("vit")
    out = DRLoc(model, LossConfig(unit=unit, pairs=256))(model, images(64))
    assert out.error.item() == pytest.approx(initial, rel=0.03)
    factor = {"cells": 1, "k": 4, "k-1": 3}[unit]
    assert out.loss.item() == pytest.approx(2 * initial / factor, rel=0.03)


def test_the_value_of_a_model_by_hand(monkeypatch):
    model = build("vit").eval()
    drloc = DRLoc(model, LossConfig(head_init="default", pairs=3))
    pairs = Pairs(torch.tensor([[[0, 3], [1, 1], [2, 0]]]), torch.tensor([[[0, 0], [3, 1], [2, 2]]]))
    monkeypatch.setattr("drloc.localise.sample_pairs", lambda *_, **__: pairs)
    out = drloc(model, images(1))
    (grid,) = grids_of(drloc, model, images(1))
    errors = []
    for n, (u, v) in enumerate(((3, 0), (0, 2), (2, 0))):
        assert offsets(pairs)[0, n].tolist() == [u, v]
        ends = [grid[0, :, pairs.rows[0, n, end], pairs.columns[0, n, end]] for end in range(2)]
        d_u, d_v = drloc.heads[0](torch.cat(ends))
        errors.append(abs(d_u - u / 4) + abs(d_v - v / 4))
    torch.testing.assert_close(out.loss, sum(errors) / 3)
    torch.testing.assert_close(out.error, (4 / 2 * sum(errors) / 3).detach())
    assert torch.equal(out.logits, model(images(1)))


# --- the model is left as it was


@ANY
def test_two_lines_and_the_model_stays_plain(family):
    model = build(family).train()
    keys, hooks = set(model.state_dict()), _hooks(model)
    drloc = DRLoc(model)
    assert model.training
    optimizer = torch.optim.AdamW([*model.parameters(), *drloc.parameters()], lr=1e-3)
    for _ in range(2):
        out = drloc(model, images(4))
        (nn.functional.cross_entropy(out.logits, torch.tensor([0, 1, 2, 3])) + 0.5 * out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(model.state_dict()) == keys
    assert _hooks(model) == hooks
    assert not set(drloc.parameters()) & set(model.parameters())
    plain = build(family).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    model.eval()
    assert torch.equal(plain(images()), model(images()))
    torch.testing.assert_close(drloc(model, images()).logits, plain(images()))


def _hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@ANY
def test_the_loss_alone_reaches_the_first_layer(family):
    model = build(family)
    DRLoc(model)(model, images()).loss.backward()
    first = next(parameter for parameter in model.parameters() if parameter.ndim >= 2 and parameter.requires_grad)
    assert any(p.grad is not None and p.grad.any() for p in (first, *model.parameters()))
    stem = {"vit": "patch_embed", "swin": "patch_embed", "cvt": "embeddings.0", "t2t": "patch_embed", "resnet": "conv1"}
    assert all(p.grad.any() for p in model.get_submodule(stem[family]).parameters() if p.requires_grad)
    classifier = model.get_classifier()
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_with_a_frozen_backbone_only_the_head_changes():
    model = build("vit").requires_grad_(False)
    drloc = DRLoc(model)
    drloc(model, images()).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in drloc.parameters())


def test_autocast_computes_the_loss_in_single_precision():
    model = build("vit").eval()
    drloc = DRLoc(model, LossConfig(head_init="default"))
    exact = drloc(model, images(), torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        half = drloc(model, images(), torch.Generator().manual_seed(0))
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, exact.loss, rtol=0.02, atol=0)


def test_channels_last_changes_nothing():
    model = build("resnet").eval()
    drloc = DRLoc(model, LossConfig(head_init="default"))
    plain = drloc(model, images(), torch.Generator().manual_seed(0)).loss
    last = drloc(
        model.to(memory_format=torch.channels_last),
        images().to(memory_format=torch.channels_last),
        torch.Generator().manual_seed(0),
    ).loss
    torch.testing.assert_close(plain, last)


@pytest.mark.slow
def test_compiles_into_one_graph():
    model = build("vit").eval()
    drloc = DRLoc(model, LossConfig(head_init="default"))

    def step(batch):
        return drloc(model, batch).loss

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    expected = step(images())
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(images()), expected)


@pytest.mark.slow
def test_the_task_can_be_learnt():
    """Sixteen images of noise, the loss alone: from a constant guess, 1.347 cells of 7, to a tenth of a cell."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=4, embed_dim=64, depth=2, num_heads=4, num_classes=0
    )
    drloc = DRLoc(model, LossConfig(head_init="default", hidden=128))
    noise = torch.randn(16, 3, 28, 28)
    optimizer = torch.optim.AdamW([*model.parameters(), *drloc.parameters()], lr=2e-3)
    errors = []
    for _ in range(220):
        out = drloc(model, noise)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        errors.append(out.error.item())
    assert sum(errors[:5]) / 5 > 1.3
    assert sum(errors[-5:]) / 5 < 0.3


def test_without_any_position_a_constant_is_best():
    """Constant images and no position embedding: every token is the same, so nothing beats a constant guess."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=28, patch_size=4, embed_dim=16, depth=1, num_heads=2, pos_embed="none"
    )
    drloc = DRLoc(model, LossConfig(hidden=16, pairs=512))
    out = drloc(model, torch.ones(32, 3, 28, 28))
    assert out.error > 66 / 49
    with torch.no_grad():
        drloc.heads[0].mlp[-1].weight.zero_()
        drloc.heads[0].mlp[-1].bias.fill_(2 / 7)
    assert drloc(model, torch.ones(32, 3, 28, 28)).error.item() == pytest.approx(66 / 49, rel=0.02)


@pytest.mark.parametrize(("variant", "factor"), [("l1", 0.5), ("ce", 1.0), ("reg", 1.0)])
def test_the_released_mean_over_axes_is_of_the_l1_mode_alone(variant, factor):
    model = build("vit").eval()
    losses = []
    for reduction in ("mean", "mean_axes"):
        torch.manual_seed(3)
        loss = DRLoc(model, LossConfig(variant=variant, reduction=reduction), input_size=(3, 16, 16))
        losses.append(loss(model, images(), torch.Generator().manual_seed(4)).loss.item())
    assert losses[1] == pytest.approx(factor * losses[0])
