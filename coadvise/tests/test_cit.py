from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from coadvise.models import CiT
from coadvise.models.stems import StemEmbed
from vitutor_core.evaluate.complexity import complexity

SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
COUNTS = [
    ("cit_tiny_patch16_224", {}, 6_104_184, 5_583_084),
    ("cit_tiny_patch16_224", {"teacher_tokens": 1}, 5_910_800, 5_563_400),
    ("cit_tiny_patch16_224", {"teacher_tokens": 0}, 5_717_416, 5_543_716),
    ("cit_tiny_patch16_224", {"stems": ("conv", "inv")}, 7_632_906, 7_111_806),
    ("cit_small_patch16_224", {}, 22_822_200, 21_782_700),
    ("cit_small_patch16_224", {"teacher_tokens": 1}, 22_436_432, 21_743_432),
    ("cit_small_patch16_224", {"teacher_tokens": 0}, 22_050_664, 21_704_164),
    ("cit_small_aligned_patch16_224", {}, 25_776_138, 24_736_638),
    ("cit_small_patch16_224", {"stems": ("conv",), "teacher_tokens": 1}, 23_797_520, 23_104_520),
    ("cit_small_patch16_224", {"stems": ("inv",), "teacher_tokens": 1}, 23_733_986, 23_040_986),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(**kwargs) -> CiT:
    return timm.create_model("cit_tiny_patch16_224", **SMALL | kwargs)


def parameters(name, **kwargs) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name, **kwargs).parameters())


@pytest.mark.parametrize(("name", "kwargs", "thousand", "hundred"), COUNTS)
def test_parameters(name, kwargs, thousand, hundred):
    assert parameters(name, **kwargs) == thousand
    assert parameters(name, num_classes=100, **kwargs) == hundred


def test_other_students():
    assert parameters("resnet10", num_classes=100) == 4_957_092
    assert parameters("mixer_tiny_patch16_224", num_classes=100) == 4_182_100


@pytest.mark.parametrize(("tokens", "length"), [(0, 197), (1, 198), (2, 199), (4, 201)])
def test_length_of_the_sequence(tokens, length):
    with torch.device("meta"):
        student = timm.create_model("cit_tiny_patch16_224", teacher_tokens=tokens)
    assert student.pos_embed.shape == (1, length, 192)
    assert len(student.teacher_heads) == tokens


def test_order_of_learnt_tokens():
    student = small()
    with torch.no_grad():
        student.cls_token.fill_(1.0)
        student.reg_token.copy_(torch.tensor([2.0, 3.0])[None, :, None])
        student.pos_embed.copy_(10 * torch.arange(19.0)[None, :, None])
    sequence = student._pos_embed(torch.zeros(2, 16, 32))
    assert sequence[0, :4, 0].tolist() == [1.0, 12.0, 23.0, 30.0]


def test_order_of_aligned_tokens():
    student = small(stems=("conv", "inv")).eval()
    images = torch.randn(2, 3, 16, 16)
    nn.init.zeros_(student.pos_embed)
    embed = student.patch_embed
    conv, inv = (embed.projections[name](embed.stems[name](images)).flatten(2).mT for name in ("conv", "inv"))
    sequence = student._pos_embed(embed(images))
    torch.testing.assert_close(sequence[:, 0], student.cls_token[0].expand(2, -1))
    torch.testing.assert_close(sequence[:, 1], conv.mean(1))
    torch.testing.assert_close(sequence[:, 2], inv.mean(1))
    torch.testing.assert_close(sequence[:, 3:], conv + inv)
    assert sequence.shape[1] == 19


@pytest.mark.parametrize("stems", [(), ("conv", "inv")])
def test_outputs(stems):
    student, images = small(stems=stems, drop_rate=0.0).eval(), torch.randn(2, 3, 16, 16)
    logits = student.token_logits(student.forward_features(images))
    assert [each.shape for each in logits] == [(2, 5)] * 3
    torch.testing.assert_close(student(images), (logits[0] + logits[1] + logits[2]) / 3)
    for index, each in enumerate(logits):
        student.predict = index
        assert torch.equal(student(images), each)
    assert isinstance(student.train()(images), tuple)
    assert len(student(images)) == 3


def test_a_plain_transformer_is_timms():
    """Without teachers' tokens, CiT is timm's ViT, and with one it is DeiT's distilled one but for the names."""
    plain, timms = small(teacher_tokens=0), timm.create_model("vit_tiny_patch16_224", **SMALL)
    timms.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(plain.eval()(images), timms.eval()(images))
    one, distilled = small(teacher_tokens=1), timm.create_model("deit_tiny_distilled_patch16_224", **SMALL)
    names = {
        "reg_token": "dist_token",
        "teacher_heads.0.weight": "head_dist.weight",
        "teacher_heads.0.bias": "head_dist.bias",
    }
    distilled.load_state_dict({names.get(name, name): value for name, value in one.state_dict().items()})
    torch.testing.assert_close(one.eval()(images), distilled.eval()(images))


def test_without_blocks_the_convolution_head_sees_the_convolution_stem_alone():
    student = small(stems=("conv", "inv")).eval()
    for block in student.blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    images = torch.randn(1, 3, 16, 16)
    _, conv, inv = student.token_logits(student.forward_features(images))
    first = [student.patch_embed.stems[name][0].weight for name in ("conv", "inv")]
    for index, logits in enumerate((conv, inv)):
        own, other = torch.autograd.grad(logits[0, 0], (first[index], first[1 - index]), retain_graph=True)
        assert own.any()
        assert not other.any()


def test_the_involution_stem_computes_in_float32():
    embed = StemEmbed(("conv", "inv"), img_size=16, patch_size=4, in_chans=3, embed_dim=8).eval()
    seen = {}
    for name in ("conv", "inv"):
        embed.projections[name].register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    images = torch.randn(2, 3, 16, 16)
    embed(images)
    exact = seen["inv"]
    with torch.autocast("cpu", torch.bfloat16):
        embed(images)
    assert torch.equal(seen["inv"], exact)
    assert seen["inv"].dtype == torch.float32
    assert seen["conv"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stems": ("conv",)}, "1 stems for 2 teacher tokens"),
        ({"stems": ("conv", "conv")}, "choose from"),
        ({"stems": ("conv", "other")}, "choose from"),
        ({"stems": ("conv", "inv"), "patch_size": 3}, "even size"),
        ({"predict": 3}, "a token from 0 to 2"),
        ({"predict": "cls"}, "write mean"),
    ],
)
def test_what_it_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small(**kwargs)


@pytest.mark.parametrize("stems", [(), ("conv", "inv")])
def test_another_size_and_other_classes(stems):
    student = small(stems=stems)
    student.set_input_size(img_size=32)
    student.reset_classifier(7)
    assert student.pos_embed.shape[1] == 3 + 64
    assert [each.shape for each in student(torch.randn(2, 3, 32, 32))] == [(2, 7)] * 3
    assert len(student.get_classifier()) == 3


def test_initialisation_and_decay():
    student = small(embed_dim=256, teacher_tokens=4)
    for token in (student.cls_token, student.reg_token, student.pos_embed, student.teacher_heads[0].weight):
        assert token.std().item() == pytest.approx(0.02, rel=0.15)
    assert not student.teacher_heads[0].bias.any()
    assert {"cls_token", "reg_token", "pos_embed"} <= student.no_weight_decay()
    stems = small(stems=("conv", "inv")).patch_embed
    assert stems.stems["conv"][3].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    generator = stems.stems["inv"][3].generate
    assert generator.weight.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.2)
    assert not generator.bias.any()
    assert stems.projections["conv"].bias.any()


def test_maps_of_blocks_leave_the_tokens_out():
    student = small(stems=("conv", "inv")).eval()
    _, (map_,) = student.forward_intermediates(torch.randn(2, 3, 16, 16), indices=[0])
    assert map_.shape == (2, 32, 4, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_student_with_stems_can_be_cast(dtype):
    model, images = small(stems=("conv", "inv")).eval(), torch.randn(2, 3, 16, 16)
    expected = model(images)
    found = model.to(dtype)(images.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_its_operations_can_be_counted_without_computing():
    assert complexity(small(stems=("conv", "inv")), 16)["flops"] > 0
