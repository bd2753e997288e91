"""Relative positions: timm's BEiT with the same weights, a table from zero, other sizes, published names."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models.beit import Beit
from torch.nn import functional as F

from core.tests.published import Official, assert_close, attend, embedded
from mae_lite_distill.models.relative import RelativeAttention, RelativeVisionTransformer, tables
from mae_lite_distill.tests.mae_samples import MICRO_MAE, train_row
from vitutor_core.models.backbone import map_reader
from vitutor_core.models.convert import convert
from vitutor_core.models.fit import fit
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.train.optim import param_groups_layer_decay

NAME = "mae_lite_relative_tiny_patch16_224"
MICRO = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 7}


def images(side=16, count=2):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def moved(model):
    """A model in double precision, away from where it starts."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.double().eval()


def test_the_bias_of_each_pair_by_hand():
    attention = RelativeAttention(8, num_heads=2, qkv_bias=True)
    attention.set_grid((2, 3))
    assert attention.relative_position_bias_table.shape == (3 * 5 + 3, 2)
    table = torch.nn.init.normal_(attention.relative_position_bias_table).detach()
    found = attention.position_bias()
    assert found.shape == (2, 7, 7)
    for query in range(7):
        for key in range(7):
            if query and key:
                (a, b), (c, d) = divmod(query - 1, 3), divmod(key - 1, 3)
                row = (a - c + 1) * 5 + (b - d + 2)
            else:
                row = 17 if query == key else 15 if query == 0 else 16
            assert torch.equal(found[:, query, key], table[row])


def test_it_is_timms_beit_with_the_same_weights():
    beit = moved(Beit(use_abs_pos_emb=True, use_rel_pos_bias=True, qkv_bias=True, **MICRO))
    weights = beit.state_dict()
    for block in range(2):
        query, value = (weights.pop(f"blocks.{block}.attn.{part}_bias") for part in "qv")
        weights[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    model = timm.create_model(NAME, **MICRO).double().eval()
    model.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), beit(images()), rtol=1e-10, atol=1e-10)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(model(images()), beit(images()), rtol=1e-10, atol=1e-10)
        model.blocks[0].attn.relative_position_bias_table[:-3] = 0
        assert (model(images()) - beit(images())).abs().max() > 1e-3


def test_it_starts_as_the_plain_model():
    models = []
    for name in (NAME, "vit_tiny_patch16_224"):
        torch.manual_seed(5)
        models.append(timm.create_model(name, global_pool="avg", **MICRO).double().eval())
    relative, plain = models
    assert tables(relative) == tuple(f"blocks.{n}.attn.relative_position_bias_table" for n in range(2))
    assert tables(plain) == ()
    assert all(torch.equal(value, relative.state_dict()[name]) for name, value in plain.state_dict().items())
    torch.testing.assert_close(relative(images()), plain(images()), rtol=1e-12, atol=1e-12)
    whole = timm.create_model(NAME)
    assert sum(parameter.numel() for parameter in whole.parameters()) == 5_717_416 + 12 * 12 * (27 * 27 + 3)


def test_tables_decay_and_learn_as_their_block_does():
    model = timm.create_model(NAME, **MICRO)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    for block in model.blocks:
        (table,) = [g for g in groups if any(p is block.attn.relative_position_bias_table for p in g["params"])]
        assert any(parameter is block.mlp.fc1.weight for parameter in table["params"])
        assert table["weight_decay"] == 0.05


def test_attention_is_read_with_the_bias():
    model = moved(timm.create_model(NAME, **MICRO))
    attention = model.blocks[0].attn
    (found,) = read_intermediates(model, images(), attentions=(0,)).attentions
    normed = model.blocks[0].norm1(model._pos_embed(model.patch_embed(images())))
    q, k, _ = attention.qkv(normed).view(2, 17, 3, 2, 8).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(found, (q @ k.mT / math.sqrt(8) + attention.position_bias()).softmax(-1))
    mask = torch.ones(17, 17, dtype=torch.bool).tril()
    causal = attention(normed, is_causal=True)
    torch.testing.assert_close(attention(normed, attn_mask=mask), causal)
    assert not torch.allclose(attention(normed), causal)


@pytest.mark.parametrize("way", ["fit", "set_input_size"])
def test_another_size_resamples_offsets_and_keeps_the_rest(way):
    model = moved(timm.create_model(NAME, **MICRO))
    name = tables(model)[1]
    before = model.state_dict()[name]
    larger = timm.create_model(NAME, **{**MICRO, "img_size": 32}).double()
    if way == "fit":
        fitted = fit(model.state_dict(), larger, where="file")
        assert fitted.changed == (
            "positions resampled from 1 x 17 x 16 to 1 x 65 x 16",
            "relative position biases resampled from 52 x 2 to 228 x 2",
        )
        larger.load_state_dict(fitted.tensors)
    else:
        larger = model
        larger.set_input_size(img_size=32)
    after = larger.state_dict()[name]
    square = before[:-3].T.reshape(1, 2, 7, 7)
    expected = F.interpolate(square, size=(15, 15), mode="bicubic").reshape(2, 225).T
    torch.testing.assert_close(after, torch.cat([expected, before[-3:]]))
    assert larger(images(32)).shape == (2, 7)


def test_a_detector_reads_its_map_without_windows():
    model = moved(timm.create_model(NAME, **MICRO))
    reader = map_reader(model, window=2, global_blocks=1)
    assert not reader.is_plain
    (found,) = reader(model, images())
    assert found.shape == (2, 16, 4, 4)


def test_what_has_no_fixed_square_grid_is_refused():
    for kwargs in ({"dynamic_img_size": True}, {"class_token": False}, {"patch_drop_rate": 0.5}, {"reg_tokens": 1}):
        with pytest.raises(ValueError, match="fixed grid"):
            RelativeVisionTransformer(**kwargs)
    model = timm.create_model(NAME, **{**MICRO, "img_size": (16, 8)})
    model.set_input_size(img_size=(16, 8))
    with pytest.raises(ValueError, match="only a square grid"):
        model.set_input_size(img_size=(16, 16))


def test_fine_tuning_from_a_plain_encoder_learns_the_tables(tmp_path):
    train_row("mae", tmp_path / "mae", *MICRO_MAE, "train.epochs=1", "optim.warmup_epochs=0")
    start = f"student.weights={tmp_path / 'mae'}"
    result = train_row("mae_relative_finetune", tmp_path / "tuned", start)
    assert 0 <= result["metrics"]["top1"] <= 100
    weights = load_file(tmp_path / "tuned" / "student.safetensors")
    assert [weights[f"blocks.{n}.attn.relative_position_bias_table"].abs().max() > 0 for n in range(2)] == [True] * 2


def test_published_weights_of_the_later_code():
    weights = Official()
    cells = [(row, column) for row in range(14) for column in range(14)]
    index = torch.full((197, 197), 729)
    index[:, 0] = 730
    index[0, 0] = 731
    index[1:, 1:] = torch.tensor([[(a - c + 13) * 27 + b - d + 13 for c, d in cells] for a, b in cells])
    with torch.no_grad():
        x = embedded(weights, images(224), width=192, patch=16, prefix="module.model.")
        for number in range(12):
            block = f"module.model.blocks.{number}"
            table = weights(f"{block}.attn.relative_position_bias_table", 732, 12)
            weights[f"{block}.attn.relative_position_index"] = index
            normed = weights.layer_norm(x, f"{block}.norm1", 1e-6)
            q, k, v = weights.linear(normed, f"{block}.attn.qkv", 576).chunk(3, -1)
            x = x + weights.linear(attend(q, k, v, 12, 0.25, table[index].permute(2, 0, 1)), f"{block}.attn.proj", 192)
            hidden = weights.linear(weights.layer_norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1", 768)
            x = x + weights.linear(F.gelu(hidden), f"{block}.mlp.fc2", 192)
        x = weights.layer_norm(x[:, 1:].mean(1), "module.model.fc_norm", 1e-6)
        expected = weights.linear(x, "module.model.head", 1000)
    found = convert(weights, where="file")
    assert found.card.name == NAME
    assert found.notes[1:] == ("prefix 'module.' removed",)
    with torch.no_grad():
        assert_close(found.model.double().eval()(images(224)), expected)
