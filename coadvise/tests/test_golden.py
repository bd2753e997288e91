"""Agreement with values that were computed by the released code of Co-advise, involution and DeiT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

import coadvise.models
from coadvise.losses import divergence, label_loss, total_loss
from coadvise.models.cit import CiT
from coadvise.models.stems import StemEmbed, combine
from vitutor_core.models.involution import Involution
from vitutor_core.models.rednet import involution_stem

GOLDEN = Path(__file__).parent / "golden"
PRECISIONS = [(torch.float64, 1e-10), (torch.float32, 5e-5)]
ROUNDED = {"expected.after_conv1", "expected.after_involution", "expected.feature"}
INVOLUTION = {"reduce_bn.": "bn."}
STEM = {
    "conv1.": "0.",
    "bn1.": "1.",
    "involution.reduce_bn.": "3.bn.",
    "involution.": "3.",
    "bn2.": "4.",
    "conv2.": "6.",
    "bn3.": "7.",
}
CONV_STEM = {"conv1.": "0.", "bn1.": "1.", "conv2.": "3.", "bn2.": "4.", "conv3.": "6.", "bn3.": "7."}
BLOCK = {
    "involution.reduce_bn.": "conv2.bn.",
    "involution.": "conv2.",
    "shortcut.conv.": "downsample.0.",
    "shortcut.bn.": "downsample.1.",
}


class Case:
    """A golden case in one precision; ``names`` maps the beginnings of its parameter names to ours."""

    def __init__(self, name: str, dtype: torch.dtype, tolerance: float, names: dict[str, str] | None = None) -> None:
        tensors = load_file(GOLDEN / f"{name}.safetensors")
        self.stored = {key: value.dtype for key, value in tensors.items()}
        self.tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
        self.dtype, self.tolerance, self.names = dtype, tolerance, names or {}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def ours(self, name: str) -> str:
        for theirs, own in self.names.items():
            if name.startswith(theirs):
                return own + name.removeprefix(theirs)
        return name

    def load(self, module: nn.Module) -> None:
        weights = {
            self.ours(key.removeprefix("weight.")): value
            for key, value in self.tensors.items()
            if key.startswith("weight.")
        }
        module.to(self.dtype)
        own = {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
        assert own == weights.keys()
        module.load_state_dict(weights, strict=False)  # all but num_batches_tracked, as asserted above

    def check(self, got: Tensor, key: str) -> None:
        expected = self.tensors[key]
        rounded = self.stored[key] == torch.float32
        tolerance = max(self.tolerance, 1e-6) if rounded else self.tolerance
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= tolerance * (expected.abs().max() or 1)

    def check_gradients(self, parameters: dict[str, Tensor], *, skip: tuple[str, ...] = ()) -> None:
        found = [key for key in self.tensors if key.startswith("grad.") and key not in skip]
        assert found
        for key in found:
            self.check(parameters[self.ours(key.removeprefix("grad."))].grad, key)


@pytest.fixture(params=PRECISIONS, ids=["float64", "float32"])
def load(request):
    return lambda name, names=None: Case(name, *request.param, names)


@pytest.mark.parametrize("name", ["k7_s1", "k7_s2", "k3_s1", "k3_s2", "k7_s2_train"])
def test_involution(load, name):
    case = load(f"involution_{name}", INVOLUTION)
    layer = Involution(32, int(name[1]), int(name[4])).train(name.endswith("train"))
    case.load(layer)
    x = case["input.x"].requires_grad_()
    if not layer.training:  # in training, a second pass would update the statistics twice
        case.check(layer.kernels(x), "expected.kernel")
    out = layer(x)
    case.check(out, "expected.out")
    (out * case["input.cotangent"]).sum().backward()
    case.check(x.grad, "grad.x")
    case.check_gradients(dict(layer.named_parameters()), skip=("grad.x",))
    if layer.training:
        case.check(layer.bn.running_mean, "expected.reduce_bn.running_mean")
        case.check(layer.bn.running_var, "expected.reduce_bn.running_var")


@pytest.mark.parametrize(("name", "stride"), [("s1", 1), ("s1_projection", 1), ("s2", 2)])
def test_rednet_block(load, name, stride):
    case = load(f"rednet_block_{name}", BLOCK)
    channels = case["input.x"].shape[1]
    shortcut = nn.Sequential(nn.Conv2d(channels, 128, 1, stride, bias=False), nn.BatchNorm2d(128))
    block = Bottleneck(channels, 32, stride, downsample=None if name == "s1" else shortcut)
    block.conv2 = Involution(32, 7, stride)
    case.load(block.eval())
    seen = []
    block.conv2.register_forward_hook(lambda *call: seen.append(call[-1]))
    x = case["input.x"].requires_grad_()
    out = block(x)
    case.check(seen[0], "expected.after_involution")
    case.check(out, "expected.out")
    (out * case["input.cotangent"]).sum().backward()
    case.check_gradients({**dict(block.named_parameters()), "x": x})


def test_rednet_stem(load):
    case = load("rednet_stem", STEM)
    stem = involution_stem(3, 64, 2).eval()
    case.load(stem)
    x = case["input.x"].requires_grad_()
    case.check(stem[:3](x), "expected.after_conv1")
    case.check(stem[:6](x), "expected.after_involution")
    out = stem(x)
    case.check(out, "expected.out")
    case.check(nn.MaxPool2d(3, 2, 1)(out), "expected.after_maxpool")
    (out * case["input.cotangent"]).sum().backward()
    case.check_gradients({**dict(stem.named_parameters()), "x": x})


def stem_embed(stem: str) -> StemEmbed:
    return StemEmbed((stem,), img_size=32, patch_size=16, in_chans=3, embed_dim=5).eval()


def joined(embed: StemEmbed, stem: str) -> nn.Module:
    """The stem and its projection under the names of the golden files."""
    module = nn.Module()
    for index, layer in embed.stems[stem].named_children():
        module.add_module(index, layer)
    module.add_module("proj", embed.projections[stem])
    return module


def test_convolution_stem(load):
    first, second = load("sak_conv_stem_rows_1_2", CONV_STEM), load("sak_conv_stem_rows_3_4", CONV_STEM)
    second.tensors |= {key: value for key, value in first.tensors.items() if key.startswith("weight.")}
    embed = stem_embed("conv")
    module = joined(embed, "conv")
    second.load(module)
    first.check(embed.stems["conv"][:6](first["input.image"]), "expected.feature")
    embedding = embed(first["input.image"])[:, 1:]
    # The map between the files was rounded to float32; the whole stem starts from the image.
    rounded = second["expected.E_conv"]
    assert (embedding - rounded).abs().max() <= 5e-5 * rounded.abs().max()
    features = second["input.feature"].requires_grad_()
    embedding = embed.projections["conv"](embed.stems["conv"][6:](features)).flatten(2).transpose(1, 2)
    second.check(embedding, "expected.E_conv")
    (embedding * second["input.cotangent"]).sum().backward()
    second.check_gradients(dict(module.named_parameters()))


def test_involution_stem(load):
    case = load("sak_inv_stem", STEM)
    embed = stem_embed("inv")
    module = joined(embed, "inv")
    case.load(module)
    if case.dtype == torch.float32:  # the whole embedding; it computes in float32 whatever comes in
        case.check(embed(case["input.image"])[:, 1:], "expected.E_inv")
    image = case["input.image"].requires_grad_()
    embedding = embed.projections["inv"](embed.stems["inv"](image)).flatten(2).transpose(1, 2)
    case.check(embedding, "expected.E_inv")
    (embedding * case["input.cotangent"]).sum().backward()
    case.check_gradients({**dict(module.named_parameters()), "image": image})


def test_aligned_tokens(load):
    case = load("sak_tokens")
    embedded = combine([case["input.E_conv"], case["input.E_inv"]])
    student = CiT(img_size=32, stems=("conv", "inv"), embed_dim=5, num_heads=1, depth=1).to(case.dtype)
    with torch.no_grad():
        student.cls_token.copy_(case["weight.class_token"])
        student.pos_embed.zero_()
        case.check(student._pos_embed(embedded), "expected.tokens_without_pos")
        student.pos_embed.copy_(case["weight.pos_embed"])
        case.check(student._pos_embed(embedded), "expected.tokens")


def test_student(load):
    names = {
        "class_token": "cls_token",
        "head_cls.": "head.",
        "head_conv.": "teacher_heads.0.",
        "head_inv.": "teacher_heads.1.",
    }
    case = load("student_forward", names)
    student = CiT(img_size=(32, 80), stems=("conv", "inv"), embed_dim=24, num_heads=3, depth=2, num_classes=7)
    student.patch_embed = nn.Identity()  # the stems have cases of their own
    case.load(student)
    stems = [case[f"input.E_{name}"].requires_grad_() for name in ("conv", "inv")]
    embedded = combine(stems)
    case.check(student._pos_embed(embedded), "expected.tokens")
    tokens = student.forward_features(embedded)
    for index, name in enumerate(("cls", "conv", "inv")):
        case.check(tokens[:, index], f"expected.feature_{name}")
    logits = student.train()(embedded)
    for name, found in zip(("cls", "conv", "inv"), logits, strict=True):
        case.check(found, f"expected.z_{name}")
    pairs = zip(logits, ("cls", "conv", "inv"), strict=True)
    sum((found * case[f"input.cotangent_{name}"]).sum() for found, name in pairs).backward()
    case.check_gradients({**dict(student.named_parameters()), "E_conv": stems[0], "E_inv": stems[1]})
    case.check(student.eval()(embedded), "expected.z_eval")


def test_evaluation_takes_the_mean_of_the_logits(load):
    case = load(
        "eval_head_mean", {"head_cls.": "head.", "head_conv.": "teacher_heads.0.", "head_inv.": "teacher_heads.1."}
    )
    student = CiT(img_size=32, embed_dim=9, num_heads=1, depth=1, num_classes=13).to(case.dtype).eval()
    weights = {case.ours(key.removeprefix("weight.")): case[key] for key in case.tensors if key.startswith("weight.")}
    # The case has the heads alone.
    assert not student.load_state_dict(weights, strict=False).unexpected_keys
    tokens = torch.stack([case[f"input.feature_{name}"] for name in ("cls", "conv", "inv")], dim=1)
    for name, logits in zip(("cls", "conv", "inv"), student.token_logits(tokens), strict=True):
        case.check(logits, f"expected.z_{name}")
    case.check(student.forward_head(tokens), "expected.z_eval")


@pytest.mark.parametrize("name", ["soft_targets", "label_smoothing", "hard_targets"])
def test_loss(load, name):
    case = load(f"loss_{name}")
    logits = {token: case[f"input.z_{token}"].requires_grad_() for token in ("cls", "conv", "inv")}
    targets = case["input.y"]
    if name == "label_smoothing":  # the loaders smooth the targets
        targets = 0.9 * nn.functional.one_hot(targets, 11).to(case.dtype) + 0.1 / 11
    label = label_loss([logits["cls"]], targets)
    terms = {token: divergence(logits[token], case[f"input.z_teacher_{token}"]) for token in ("conv", "inv")}
    loss = total_loss(label, terms, label_weight=1.0, weights={})
    loss.backward()
    case.check(loss.detach(), "expected.loss")
    case.check(label.detach(), "expected.ce")
    case.check(terms["conv"].detach(), "expected.kl_conv")
    case.check(terms["inv"].detach(), "expected.kl_inv")
    case.check_gradients({f"z_{token}": value for token, value in logits.items()})


def test_deits_soft_loss_divides_by_the_classes_too(load):
    case = load("deit_soft_distillation")
    terms = {"teacher": divergence(case["input.z_dist"], case["input.z_teacher"], temperature=2.5)}
    label = label_loss([case["input.z_cls"]], case["input.y"])
    case.check(total_loss(label, terms, label_weight=0.7, weights={"teacher": 0.3 / 11}), "expected.loss")
    ours = total_loss(label, terms, label_weight=0.7, weights={"teacher": 0.3})
    assert ours > 1.2 * case["expected.loss"]


def test_models_are_registered():
    assert coadvise.models.CiT is CiT
