"""Distillation of hidden states: the states that the next layer reads, through a learnt matrix."""

from __future__ import annotations

import pytest
import torch

from mae_lite_distill.losses import hidden_loss
from mae_lite_distill.methods.masked import MaskedPretraining
from mae_lite_distill.models import encode, encode_hidden, projection
from mae_lite_distill.models.encoder import masking_of
from mae_lite_distill.tests.mae_samples import (
    INFO,
    MICRO_MAE,
    PRECISIONS,
    assert_agrees,
    load,
    resolve,
    small_vit,
    train_row,
    weights_of,
)
from mae_lite_distill.tests.test_distillation import distilled, images, vivid
from vitutor_core.errors import ConfigError


def hidden(layers=(3,), **kwargs):
    method = distilled(distill_target="hidden", distill_layers=layers, **kwargs)
    method.maps = torch.nn.ParameterList([projection(16, 32) for _ in layers])
    return method


def masking(number=3):
    return masking_of(torch.rand(number, 16, generator=torch.Generator().manual_seed(3)).argsort(1), 4)


def recorded(vit, batch, masked):
    """What the norms of a ViT put out in one pass: of each block the first one, and the last of all."""
    found = []
    norms = [*(block.norm1 for block in vit.blocks), vit.norm]
    handles = [norm.register_forward_hook(lambda _m, _i, output: found.append(output)) for norm in norms]
    encode(vit, batch, masked)
    for handle in handles:
        handle.remove()
    return found


def test_by_hand():
    # W (1, 2) = (1, 2, 3) against zeros: 14 / 3; W (0, -1) = (0, -1, -1) against ones: (1 + 4 + 4) / 3.
    student = torch.tensor([[[1.0, 2.0], [0.0, -1.0]]])
    teacher = torch.tensor([[[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).requires_grad_()
    loss = hidden_loss([student], [teacher], [matrix])
    assert loss.item() == pytest.approx((14 + 9) / 6)
    loss.backward()
    # 2 / 6 of the errors' products with the student's states: errors (1, 2, 3) and (-1, -2, -2).
    expected = torch.tensor([[1.0, 3.0], [2.0, 6.0], [3.0, 8.0]]) / 3
    torch.testing.assert_close(matrix.grad, expected)
    twice = hidden_loss([student] * 2, [teacher] * 2, [matrix] * 2)
    torch.testing.assert_close(twice, 2 * loss)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (([], [], []), "hidden_loss: 0 layers, 0 of the teacher and 0 maps"),
        (([(2, 5, 3)] * 2, [(2, 5, 4)], [(4, 3)] * 2), "hidden_loss: 2 layers, 1 of the teacher and 2 maps"),
        (([(2, 5, 3)], [(2, 5, 4)], [(3, 4)]), r"shapes \(2, 5, 3\), \(2, 5, 4\) and \(3, 4\)"),
        (([(2, 5, 3)], [(2, 6, 4)], [(4, 3)]), r"shapes \(2, 5, 3\), \(2, 6, 4\) and \(4, 3\)"),
        (([(2, 5, 3)], [(2, 5, 5)], [(4, 3)]), r"shapes \(2, 5, 3\), \(2, 5, 5\) and \(4, 3\)"),
    ],
)
def test_states_of_other_shapes_are_refused(parts, message):
    with pytest.raises(ValueError, match=message):
        hidden_loss(*([torch.zeros(shape) for shape in part] for part in parts))


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_behind_the_last_block_it_is_what_the_released_encoder_gives(dtype, tolerance):
    case = load("encoder_visible_tokens", dtype)
    vit = small_vit(weights_of(case), heads=3)
    found = encode_hidden(vit, case["input.images"], masking_of(case["input.ids_shuffle"], 6), (1,))
    assert_agrees(found[1].detach(), case["expected.latent"], tolerance)


def test_states_are_those_that_the_next_layer_reads():
    vit, batch, masked = vivid().eval(), images(), masking()
    norms = recorded(vit, batch, masked)
    assert len(norms) == 4
    encoded = encode(vit, batch, masked, hidden=(0, 1, 2))
    alone = encode_hidden(vit, batch, masked, (0, 1, 2))
    for block in range(3):
        assert torch.equal(encoded.hidden[block], norms[block + 1])
        assert torch.equal(alone[block], norms[block + 1])
    assert torch.equal(encode(vit, batch, masked).tokens, encoded.tokens)
    vit.blocks[2].mlp.fc1.weight.data.fill_(torch.nan)
    assert encode_hidden(vit, batch, masked, (0, 1))[1].isfinite().all()


def test_the_objective_against_the_norms_of_both_in_double_precision():
    method, batch, masked = hidden(layers=(1, 3)).double(), images().double(), masking()
    method._teacher.model.double()
    output = method.objective(batch, masked)
    ours = recorded(method.student, batch, masked)
    theirs = recorded(method._teacher.model, method._teacher.adapt(batch), masked)
    expected = torch.zeros((), dtype=torch.float64)
    for place, layer in enumerate((1, 3)):
        errors = ours[layer] @ method.maps[place].T - theirs[layer]
        expected = expected + errors.square().sum() / errors.numel()
    torch.testing.assert_close(output.parts["hidden_loss"], expected, rtol=1e-12, atol=0)
    assert output.parts.keys() == {"reconstruction_loss", "hidden_loss"}
    torch.testing.assert_close(output.loss, output.parts["reconstruction_loss"] + expected)


def test_gradients_reach_all_of_the_distilled_block_and_never_the_teacher():
    method = hidden(layers=(2,))
    method.objective(images(), masking()).parts["hidden_loss"].backward()
    first, block, beyond = method.student.blocks
    assert (block.mlp.fc2.weight.grad != 0).any()
    assert (first.attn.qkv.weight.grad.chunk(3)[2] != 0).any()
    assert (method.maps[0].grad != 0).all()
    # Of the next block, its first norm alone is in front of what is compared.
    assert [name for name, value in beyond.named_parameters() if value.grad is not None] == [
        "norm1.weight",
        "norm1.bias",
    ]
    assert method.decoder.mask_token.grad is None
    assert all(value.grad is None for value in method._teacher.model.parameters())


def test_the_projection_begins_as_a_linear_layer_does():
    matrix = projection(192, 768)
    assert matrix.shape == (768, 192)
    assert 0.0721 < matrix.abs().max() <= 192**-0.5


@pytest.mark.parametrize(
    "setting", ["mae.distill_quantity=probs", "mae.head_map_init=identity", "mae.decouple_after=1"]
)
def test_what_is_for_attention_is_refused(setting):
    with pytest.raises(ConfigError, match="compares no attention"):
        resolve("mae_hidden", *MICRO_MAE, "mae.distill_layers=[2]", setting)


def test_hidden_states_of_no_block_are_refused():
    with pytest.raises(ConfigError, match=r"distill_target=hidden: name the blocks in mae\.distill_layers"):
        resolve("mae", *MICRO_MAE, "mae.distill_target=hidden")


def test_a_teacher_of_another_width_teaches(tmp_path):
    short = ("train.epochs=1", "optim.warmup_epochs=0", *MICRO_MAE)
    train_row("mae_teacher", tmp_path / "t", *short, "student.kwargs.embed_dim=24")
    settings = ("mae.distill_layers=[2]", f"teacher.weights={tmp_path / 't'}", *short)
    method = MaskedPretraining.build(resolve("mae_hidden", *settings), INFO)
    assert [tuple(matrix.shape) for matrix in method.maps] == [(24, 16)]
    result = train_row("mae_hidden", tmp_path / "s", *settings)
    assert result["metrics"].keys() == {"eval_reconstruction_loss", "knn_top1", "images"}
    assert "hidden_loss" in (tmp_path / "s" / "curves.csv").read_text().splitlines()[0]
