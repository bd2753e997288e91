"""One step of the real method, against the formulas written out; what each term reaches; what build refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dearkd.losses import hidden_loss
from dearkd.method import DearKD
from dearkd.models import MHCA, Aligner
from vitutor_core.data.build import build_data
from vitutor_core.distill import FrozenTeacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import load_model, weights_sha256
from vitutor_core.train import optim
from vitutor_core.train.method import Clock

STILL = ("student.kwargs.drop_path_rate=0.0", "student.kwargs.rpe_drop=0.0")
"""No randomness in training mode, so that a step can be computed twice."""
START = Clock(0, 3, 9)
BLOCKS = {f"blocks.{index}" for index in range(4)}
EVERY_BLOCK = {"embed", *BLOCKS, "norm"}


@pytest.fixture(scope="module")
def digits(dearkd_config):
    """The data of a run with soft targets: its facts, and the batch of its first update."""
    config = dearkd_config("augment.mixup=0.8", "augment.label_smoothing=0.1")
    data = build_data(config, device=torch.device("cpu"))
    (batch,) = next(iter(data.train.epoch(0)))
    assert batch.targets.shape == (64, 10)
    return data.info, batch


@pytest.fixture
def build(digits, dearkd_config):
    def from_settings(*settings: str, row: str | None = None) -> DearKD:
        torch.manual_seed(0)
        method = DearKD.build(dearkd_config(*settings, row=row), digits[0])
        with torch.no_grad():  # away from the start, where biases are 0 and attention hardly sees the content
            for parameter in method.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return method.train()

    return from_settings


@pytest.fixture
def teacher(dearkd_teachers):
    """The teacher's weights in a model of their own."""
    return load_model(dearkd_teachers / "cnn" / "student.safetensors")[0].eval()


def outputs(model, images, names):
    """Run ``model`` and return its output and those of some of its modules, through plain hooks."""
    found, handles = {}, []
    for name in names:
        module = model.get_submodule(name)
        handles.append(module.register_forward_hook(lambda _m, _i, out, name=name: found.update({name: out})))
    result = model(images)
    for handle in handles:
        handle.remove()
    return result, found


def cross_entropy(logits, targets):
    """Mean over the batch of soft-label cross-entropy; class ids count as one-hot rows."""
    if targets.ndim == 1:
        targets = torch.eye(logits.shape[1])[targets]
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    return -(targets * log_probabilities).sum(1).mean()


def as_map(tokens, prefix):
    side = math.isqrt(tokens.shape[1] - prefix)
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, side, side)


@pytest.mark.parametrize("share_head", [False, True])
def test_stage_one_loss_is_eq_4_to_6(build, digits, teacher, monkeypatch, share_head):
    weights = ("method.alpha_loss=0.3", "method.beta_loss=0.7")
    method, (_, batch) = build(*STILL, *weights, f"method.share_head={str(share_head).lower()}"), digits
    call, seen = FrozenTeacher.__call__, []
    monkeypatch.setattr(
        FrozenTeacher, "__call__", lambda self, images, **kwargs: seen.append(images) or call(self, images, **kwargs)
    )
    output = method(batch, START)
    student = method.student
    _, maps = outputs(student, batch.images, ("blocks.1", "blocks.2", "norm"))
    teacher_logits, teacher_maps = outputs(teacher, batch.images, ("layer2", "layer3"))
    tokens = maps["norm"]
    label = cross_entropy(student.head(tokens[:, 0]), batch.targets)
    head = student.head if share_head else method.head_dist
    logit = cross_entropy(head(tokens[:, 1:].mean(1)), teacher_logits.argmax(1))
    hidden = 0.0
    for aligner, block, stage in zip(method.aligners, ("blocks.1", "blocks.2"), ("layer2", "layer3"), strict=True):
        hidden += (aligner(as_map(maps[block], 1)) - teacher_maps[stage]).square().mean() / 2
    for name, value in {"label_loss": label, "logit_loss": logit, "hidden_loss": hidden}.items():
        torch.testing.assert_close(output.parts.pop(name), value, rtol=1e-5, atol=1e-6)
    assert output.parts == {}
    torch.testing.assert_close(output.loss, 0.3 * label + 0.7 * logit + 0.7 * hidden, rtol=1e-5, atol=1e-6)
    assert (method.head_dist is None) is share_head
    # The teacher judges the very images that the student sees, mixed as they are.
    assert len(seen) == 1
    assert seen[0] is batch.images


def reached(method):
    """The parts of a method that have a gradient, by name; ``embed`` is everything in front of the blocks."""
    found = set()
    for name, parameter in method.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            continue
        words = name.removeprefix("student.").split(".")
        part = ".".join(words[:2]) if words[0] in {"blocks", "aligners"} else words[0]
        found.add("embed" if part in {"patch_embed", "pos_embed", "cls_token"} else part)
    return found


@pytest.mark.parametrize(
    ("term", "settings", "expected"),
    [
        ("label_loss", (), {*EVERY_BLOCK, "head"}),
        ("logit_loss", (), {*EVERY_BLOCK, "head_dist"}),
        ("logit_loss", ("method.share_head=true",), {*EVERY_BLOCK, "head"}),
        ("hidden_loss", (), {"embed", "blocks.0", "blocks.1", "blocks.2", "aligners.0", "aligners.1"}),
        ("hidden_loss", ("method.pairs=[[2, layer3]]",), {"embed", "blocks.0", "blocks.1", "aligners.0"}),
        ("hidden_loss", ("method.pairs=[[1, layer1]]",), {"embed", "blocks.0", "aligners.0"}),
    ],
)
def test_what_a_term_reaches(build, digits, term, settings, expected):
    method = build(*STILL, *settings)
    method(digits[1], START).parts[term].backward()
    assert reached(method) == expected
    student = method.student
    for parameter in (student.cls_token, student.pos_embed, student.patch_embed.proj.weight):
        assert parameter.grad.any()
    for index, block in enumerate(student.blocks[:3]):
        for parameter in (block.attn.alpha, block.attn.delta):
            assert (parameter.grad is not None and bool(parameter.grad.any())) is (f"blocks.{index}" in expected)


def test_label_term_alone(build, digits):
    method = build(*STILL, "method.alpha_loss=1.0", "method.beta_loss=0.0")
    output = method(digits[1], START)
    tokens = method.student.forward_features(digits[1].images)
    expected = cross_entropy(method.student.head(tokens[:, 0]), digits[1].targets)
    torch.testing.assert_close(output.loss, expected, rtol=1e-6, atol=0)
    output.loss.backward()
    assert reached(method) == {*EVERY_BLOCK, "head"}
    assert method.aligners is None
    assert "hidden_loss" not in output.parts


def test_without_logit_term_the_label_term_counts_in_full(build, digits):
    output = build(*STILL, "method.distill=none", "method.alpha_loss=0.3")(digits[1], START)
    torch.testing.assert_close(output.loss, output.parts["label_loss"] + output.parts["hidden_loss"])


def test_channel_std_normalises_the_teachers_maps(build, digits, teacher):
    method, (_, batch) = build(*STILL, "method.target_norm=channel_std"), digits
    hidden = method(batch, START).parts["hidden_loss"]
    _, maps = outputs(method.student, batch.images, ("blocks.1", "blocks.2"))
    _, targets = outputs(teacher, batch.images, ("layer2", "layer3"))
    aligned = [aligner(as_map(tokens, 1)) for aligner, tokens in zip(method.aligners, maps.values(), strict=True)]
    assert hidden.item() == pytest.approx(
        hidden_loss(aligned, list(targets.values()), target_norm="channel_std").item(), rel=1e-5
    )
    assert hidden.item() != pytest.approx(hidden_loss(aligned, list(targets.values())).item(), rel=0.1)


def test_a_step_leaves_the_teacher_alone(build, digits, dearkd_config, teacher):
    method = build()
    optimizer = optim.build_optimizer(method, dearkd_config().optim, 64)
    for _ in range(2):
        optimizer.zero_grad()
        method(digits[1], START).loss.backward()
        optimizer.step()
    assert any("running_var" in name for name in teacher.state_dict())
    model = method._teacher.model
    assert weights_sha256(model.state_dict()) == weights_sha256(teacher.state_dict())
    assert method.teachers()["cnn"]["sha256"] == weights_sha256(teacher.state_dict())
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert {name.split(".")[0] for name in method.state_dict()} == {"student", "aligners", "head_dist"}
    assert not {id(p) for p in model.parameters()} & {id(p) for p in method.parameters()}


def test_facts_of_the_teacher(build):
    assert build(row="vit").teachers() == {}
    facts = build().teachers()["cnn"]
    assert facts["name"] == "resnet8_tiny"
    assert 0 < facts["top1"] <= 100


def test_alpha_and_delta_do_not_decay_in_a_run(build, dearkd_config):
    method = build()
    optimizer = optim.build_optimizer(method, dearkd_config().optim, 64)
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == dict(method.named_parameters()).keys()
    free = {"student.cls_token", "student.pos_embed"}
    free |= {f"student.blocks.{block}.attn.{name}" for block in range(3) for name in ("alpha", "delta")}
    for name, parameter in method.named_parameters():
        assert decay[name] == (0 if parameter.ndim == 1 or name in free else 0.05), name


def test_token_distillation_is_deits_hard_distillation(build, digits, teacher):
    method, (_, batch) = build("method.alpha_loss=0.7", "student.kwargs.drop_path_rate=0.0", row="deit_100"), digits
    output = method(batch, START)
    student = method.student
    tokens = student.forward_features(batch.images)
    class_logits, dist_logits = student.head(tokens[:, 0]), student.head_dist(tokens[:, 1])
    # DeiT's released alpha weights the teacher.
    alpha = 1 - 0.7
    label = cross_entropy(class_logits, batch.targets)
    logit = cross_entropy(dist_logits, teacher(batch.images).argmax(1))
    torch.testing.assert_close(output.loss, (1 - alpha) * label + alpha * logit, rtol=1e-5, atol=1e-6)
    assert set(output.parts) == {"label_loss", "logit_loss"}
    output.parts["label_loss"].backward(retain_graph=True)
    assert reached(method) == {*EVERY_BLOCK, "head"} | {"dist_token"}
    assert student.head_dist.weight.grad is None
    method.zero_grad()
    output.parts["logit_loss"].backward()
    assert student.head.weight.grad is None
    assert student.head_dist.weight.grad.any()
    evaluated = method.inference_model().eval()(batch.images)
    torch.testing.assert_close(evaluated, (class_logits + dist_logits) / 2, rtol=1e-5, atol=1e-6)


def test_inference_is_the_class_token_alone(build, digits):
    method = build()
    assert method.inference_model() is method.student
    student, images = method.student.eval(), digits[1].images
    expected = student.head(student.forward_features(images)[:, 0])
    assert torch.equal(student(images), expected)
    with torch.no_grad():
        method.head_dist.weight.add_(1)
    assert torch.equal(method.inference_model()(images), expected)


def test_without_teacher_it_is_supervised_training(build, digits):
    method = build("student.kwargs.drop_path_rate=0.0", row="vit")
    output = method(digits[1], START)
    expected = cross_entropy(method.student(digits[1].images), digits[1].targets)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert set(output.parts) == {"label_loss"}
    assert list(method.children()) == [method.student]
    assert method.on_epoch(Clock(8, 3, 9)) is False


def distance_by_hand(student, images, index):
    """Attention distance of a block in pixels: softmax from the projections, then a loop over pairs of patches."""
    attention, inputs = student.blocks[index].attn, []
    handle = attention.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    student(images)
    handle.remove()
    heads, prefix, width = attention.num_heads, student.num_prefix_tokens, student.patch_embed.grid_size[1]
    q, k, _ = attention.qkv(inputs[0]).reshape(*inputs[0].shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
    if isinstance(attention, MHCA):
        logits = logits + attention.position_bias()
    content = logits.softmax(-1)[:, :, prefix:, prefix:]
    content = (content / content.sum(-1, keepdim=True)).mean((0, 1))
    pairs = [(i, j) for i in range(len(content)) for j in range(len(content))]
    steps = (content[i, j].item() * math.dist(divmod(i, width), divmod(j, width)) for i, j in pairs)
    return student.patch_embed.patch_size[0] * sum(steps) / len(content)


@pytest.mark.parametrize("row", [None, "deit_100"])
def test_the_report_has_attention_distances(build, digits, row):
    method, images = build(row=row), digits[1].images[:8]
    found = method.report(images).metrics
    assert method.student.training
    assert all(parameter.grad is None for parameter in method.parameters())
    method.eval()
    with torch.no_grad():
        expected = [distance_by_hand(method.student, images, index) for index in range(4)]
    assert found == pytest.approx({f"attention_distance_block{i}": d for i, d in enumerate(expected)}, rel=1e-4)


@pytest.mark.parametrize("name", ["resnet8_tiny", "efficientnet_b0"])
def test_a_cnn_has_no_attention_distances(build, digits, name):
    assert build(f"student={{name: {name}}}", row="vit").report(digits[1].images[:2]).metrics == {}


def test_the_report_says_when_the_teacher_leaves(build):
    two_stages = build()
    leaves = {"the teacher leaves": two_stages._stage1_epochs}
    assert two_stages.report().events == leaves
    two_stages.on_epoch(Clock(two_stages._stage1_epochs, 1, 1000))
    assert two_stages.report().events == leaves  # also when it has left
    assert build(row="vit").report().events == {}
    assert build("method.two_stage=false", "method.stage1_epochs=null").report().events == {}


def test_stage_two_from_the_clock_alone(build, digits):
    method = build(*STILL)
    for step in (0, 3, 5):
        assert method.on_epoch(Clock(step, 3, 9)) is False
    before = method.student.state_dict()
    assert method.on_epoch(Clock(6, 3, 9)) is True
    assert method.on_epoch(Clock(6, 3, 9)) is False
    assert method._teacher is method.aligners is method.head_dist is None
    assert all(torch.equal(value, before[name]) for name, value in method.student.state_dict().items())
    output = method(digits[1], Clock(6, 3, 9))
    expected = cross_entropy(method.student(digits[1].images), digits[1].targets)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert set(output.parts) == {"label_loss"}
    assert "cnn" in method.teachers()


@pytest.mark.parametrize("learn_delta", ["true", "false"])
def test_freeze_rpe_stops_the_training_of_alpha_and_delta(build, learn_delta):
    method = build("method.freeze_rpe=true", f"student.kwargs.learn_delta={learn_delta}")
    method.on_epoch(Clock(6, 3, 9))
    frozen = {name for name, parameter in method.student.named_parameters() if not parameter.requires_grad}
    learnt = ("alpha", "delta") if learn_delta == "true" else ("alpha",)
    assert frozen == {f"blocks.{block}.attn.{name}" for block in range(3) for name in learnt}


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        (("method.pairs=[[5, layer2]]",), None, "block 5 of a student with 4 blocks"),
        (("method.pairs=[[0, layer2]]",), None, "block 0 of a student with 4 blocks"),
        (("method.pairs=[[2, layer9]]",), None, "no feature 'layer9'; did you mean 'layer3'"),
        (("method.pairs=[[2, layer2.0.bn2]]",), None, "negative values; set method.aligner_act=none"),
        (("method.pairs=[]", "student={name: resnet8_tiny}"), None, "resnet8_tiny has no patch tokens"),
        (("student.name=vit_tiny_patch16_224",), "deit_100", "vit_tiny_patch16_224 has no distillation token"),
    ],
)
def test_build_refuses(build, settings, row, message):
    with pytest.raises(ConfigError, match=message):
        build(*settings, row=row)


def test_signed_teacher_maps_need_another_activation(build, digits):
    method = build("method.pairs=[[2, layer2.0.bn2]]", "method.aligner_act=none")
    assert isinstance(method.aligners[0], Aligner)
    assert isinstance(method.aligners[0].act, nn.Identity)
    assert method(digits[1], START).parts["hidden_loss"].isfinite()
