"""Attention distillation: same patches, right quantity, right gradients, a teacher that never changes."""

from __future__ import annotations

import copy

import pytest
import torch

from mae_lite_distill.config import MAEConfig
from mae_lite_distill.losses import attention_loss
from mae_lite_distill.methods.masked import MaskedPretraining, init_encoder
from mae_lite_distill.models import Decoder, LogitBlock, encode, encode_logits, head_map, random_masking
from mae_lite_distill.models.encoder import masking_of
from mae_lite_distill.tests.mae_samples import INFO, MICRO_MAE, resolve, train_row
from mae_lite_distill.tests.test_masked import CPU, tiny
from vitutor_core.data.types import Batch
from vitutor_core.distill import FrozenTeacher
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock


def vivid(**kwargs):
    """A ViT of three blocks whose attention is not uniform, as timm's initialisation makes it at this width."""
    vit = tiny(depth=3, **kwargs)
    init_encoder(vit)
    return vit


def distilled(student=None, teacher=None, *, init="random", **settings):
    """A method with a student of 2 heads and a teacher of 4, three blocks deep."""
    torch.manual_seed(1)
    config = MAEConfig(decoder_width=16, decoder_heads=2, **{"distill_layers": (3,), "head_map_init": init, **settings})
    student, model = student or vivid(), teacher or vivid(embed_dim=32, num_heads=4)
    frozen = FrozenTeacher(model, name="t", mean=INFO.mean, std=INFO.std, image_size=16, info=INFO)
    maps = [head_map(student.blocks[0].attn.num_heads, model.blocks[0].attn.num_heads, init=init)]
    extra = None if config.decouple_after is None else LogitBlock(16, 2)
    decoder = Decoder(16, (4, 4), 48, width=16, heads=2)
    return MaskedPretraining(
        student,
        decoder,
        config,
        INFO,
        teacher=frozen,
        maps=torch.nn.ParameterList(maps * len(config.distill_layers)),
        extra_block=extra,
    )


def images(number=3):
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def step(method, batch=None):
    batch = images() if batch is None else batch
    return method.objective(batch, masking_of(torch.rand(len(batch), 16).argsort(1), 4))


def test_teacher_and_student_see_the_same_patches_in_the_same_order(monkeypatch):
    from mae_lite_distill.methods import masked

    seen = []
    for name in ("encode", "encode_logits"):
        function = getattr(masked, name)
        monkeypatch.setattr(
            masked, name, lambda v, x, m, *a, f=function, **k: (seen.append((x, m)), f(v, x, m, *a, **k))[1]
        )
    method, batch = distilled(), Batch(images(), torch.zeros(3).long(), torch.arange(3))
    method(batch, Clock(0, 1, 1))
    (ours, masking), (theirs, same) = seen
    assert masking is same
    assert torch.equal(ours, theirs)
    # Another order of the teacher's tokens changes the loss, the same order of both does not.
    first = method.objective(batch.images, masking).parts["attention_loss"]
    order = torch.tensor([2, 0, 3, 1])
    shuffle = torch.cat([masking.shuffle[:, :4][:, order], masking.shuffle[:, 4:]], dim=1)
    again = method.objective(batch.images, masking_of(shuffle, 4)).parts["attention_loss"]
    torch.testing.assert_close(again, first)
    monkeypatch.setattr(masked, "encode_logits", lambda v, x, m, b: encode_logits(v, x, masking_of(shuffle, 4), b))
    assert abs(method.objective(batch.images, masking).parts["attention_loss"] - first) > 1e-4


def test_gradients_never_reach_the_teacher_and_it_stays_as_it_is():
    teacher = tiny(depth=3, embed_dim=32, num_heads=4)
    before = copy.deepcopy(teacher.state_dict())
    method = distilled(teacher=teacher)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        method.train()
        assert not teacher.training
        optimizer.zero_grad()
        step(method).loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(value is part for value in method.parameters() for part in teacher.parameters())
    teacher.train()
    with pytest.raises(ValueError, match="training mode"):
        step(method)


def test_the_attention_loss_reaches_queries_and_keys_of_its_block_only():
    method = distilled()
    step(method).parts["attention_loss"].backward()
    last = method.student.blocks[2]
    queries, keys, values = last.attn.qkv.weight.grad.chunk(3)
    assert (queries != 0).any()
    assert (keys != 0).any()
    assert (values == 0).all()
    assert last.attn.proj.weight.grad is None or (last.attn.proj.weight.grad == 0).all()
    assert last.mlp.fc1.weight.grad is None
    assert method.decoder.mask_token.grad is None
    assert (method.maps[0].grad != 0).all()
    assert (method.student.blocks[0].mlp.fc1.weight.grad != 0).any()


def test_of_equal_models_with_an_identity_the_loss_is_zero():
    vit = vivid()
    same = distilled(vit, copy.deepcopy(vit), init="identity")
    assert step(same).parts["attention_loss"].item() == pytest.approx(0, abs=1e-12)
    assert step(distilled(vit, vivid(), init="identity")).parts["attention_loss"] > 1e-4


def test_logits_are_compared_before_the_softmax():
    student, teacher, mixing = torch.randn(2, 3, 5, 5), torch.randn(2, 4, 5, 5), torch.randn(4, 3)
    loss = attention_loss([student], [teacher], [mixing])
    by_hand = 0.0
    for out in range(4):
        by_hand += (sum(mixing[out, h] * student[:, h] for h in range(3)) - teacher[:, out]).square().mean() / 4
    torch.testing.assert_close(loss, by_hand)
    shifted = [teacher + 1.0]
    assert abs(attention_loss([student], shifted, [mixing]) - loss) > 1e-3
    probs = [attention_loss([student], t, [mixing], quantity="probs") for t in ([teacher], shifted)]
    torch.testing.assert_close(*probs)
    halves = [attention_loss([student[i : i + 1]], [teacher[i : i + 1]], [mixing]) for i in range(2)]
    torch.testing.assert_close(sum(halves) / 2, loss)
    torch.testing.assert_close(attention_loss([student] * 2, [teacher] * 2, [mixing] * 2), 2 * loss)


@pytest.mark.parametrize(
    "parts",
    [([], [], []), ([(2, 3, 5, 5)], [(2, 4, 5, 5)], [(3, 4)]), ([(2, 3, 5, 5)], [(2, 4, 6, 6)], [(4, 3)])],
)
def test_attention_of_other_shapes_is_refused(parts):
    with pytest.raises(ValueError, match="attention_loss"):
        attention_loss(*([torch.zeros(shape) for shape in part] for part in parts))


def test_head_map():
    mixing = head_map(12, 12, init="random")
    assert mixing.numel() == 144
    assert 0.25 < mixing.abs().max() <= 0.28868
    assert torch.equal(head_map(3, 3, init="identity"), torch.eye(3))
    with pytest.raises(ValueError, match="no identity"):
        head_map(3, 4, init="identity")


def test_only_distilled_blocks_leave_the_fused_path():
    vit, batch = tiny(depth=3).eval(), images()
    masking = random_masking(3, 16, 0.75, CPU)
    softmaxes = []
    for block in vit.blocks:
        block.attn.attn_drop.register_forward_hook(lambda *_: softmaxes.append(1))
    encoded = encode(vit, batch, masking, logits=(1, 2))
    assert not softmaxes  # timm passes probabilities through attn_drop where it materialises them
    alone = encode_logits(vit, batch, masking, (1, 2))
    for block in vit.blocks:
        block.attn.fused_attn = False
    probabilities = []
    for block in vit.blocks:
        block.attn.attn_drop.register_forward_hook(lambda _m, inputs, _o: probabilities.append(inputs[0]))
    torch.testing.assert_close(encode(vit, batch, masking).tokens, encoded.tokens)
    for block in (1, 2):
        torch.testing.assert_close(encoded.logits[block].softmax(-1), probabilities[block])
        torch.testing.assert_close(alone[block], encoded.logits[block])


def test_the_teacher_stops_at_the_last_logits():
    vit = tiny(depth=3)
    vit.blocks[2].attn.proj.weight.data.fill_(torch.nan)
    vit.blocks[2].mlp.fc1.weight.data.fill_(torch.nan)
    vit.norm.weight.data.fill_(torch.nan)
    assert encode_logits(vit, images(), None, (0, 2))[2].isfinite().all()


def test_decoupled_distillation():
    method = distilled(decouple_after=1)
    output = step(method)
    output.parts["reconstruction_loss"].backward(retain_graph=True)
    blocks = method.student.blocks
    assert (blocks[0].mlp.fc1.weight.grad != 0).any()
    assert blocks[1].mlp.fc1.weight.grad is None
    assert all(parameter.grad is None for parameter in method.extra_block.parameters())
    output.parts["attention_loss"].backward()
    assert (blocks[2].mlp.fc1.weight.grad != 0).any()
    assert sum(parameter.numel() for parameter in LogitBlock(192, 12).parameters()) == 111_552


def test_a_run_publishes_the_student_alone(tmp_path):
    train_row(
        "mae_teacher",
        tmp_path / "t",
        *MICRO_MAE,
        "student.kwargs.num_heads=4",
        "train.epochs=1",
        "optim.warmup_epochs=0",
    )
    settings = (
        *MICRO_MAE,
        "mae.distill_layers=[2]",
        f"teacher.weights={tmp_path / 't'}",
        "train.epochs=1",
        "optim.warmup_epochs=0",
    )
    result = train_row("mae_distilled", tmp_path / "s", *settings)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "s" / "student.safetensors").keys() == tiny().state_dict().keys()
    assert result["teachers"]["mae"]["name"] == "vit_tiny_patch16_224"
    assert (tmp_path / "s" / "pictures" / "reconstruction-0001.png").exists()
    assert result["metrics"].keys() == {"eval_reconstruction_loss", "knn_top1", "images"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("mae.distill_layers=[3]",), "block 3 of a student with 2 blocks"),
        (("mae.distill_layers=[2]", "mae.head_map_init=identity"), "2 heads, the teacher 4"),
        (
            ("mae.distill_layers=[2]", "student.kwargs.patch_size=8", "mae.mask_ratio=0.5"),
            "patches are not the student's",
        ),
        (("mae.distill_layers=[2]", "mae.decouple_after=3"), "block 3 of 2"),
        (("mae.distill_layers=[2]", "mae.mask_ratio=0.99"), "keeps none"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path_factory, settings, message):
    teacher = tmp_path_factory.getbasetemp() / "pair-teacher"
    if not teacher.exists():
        train_row(
            "mae_teacher", teacher, *MICRO_MAE, "student.kwargs.num_heads=4", "train.epochs=1", "optim.warmup_epochs=0"
        )
    with pytest.raises(ConfigError, match=message):
        MaskedPretraining.build(resolve("mae_distilled", *MICRO_MAE, *settings, f"teacher.weights={teacher}"), INFO)
