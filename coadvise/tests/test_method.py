"""One step of the real method against eq. 1 written out; what each term reaches; what build refuses."""

from __future__ import annotations

import pytest
import torch

from coadvise.method import Coadvise
from conformance.records import made_up_card
from vitutor_core.data.types import Batch
from vitutor_core.distill import FrozenTeacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import save_model
from vitutor_core.train.method import Clock

CLOCK = Clock(0, 3, 9)


def divergence(of, against):
    return (of.softmax(1) * (of.log_softmax(1) - against.log_softmax(1))).sum(1).mean()


def cross_entropy(logits, targets):
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def teacher_logits(method, images):
    return {role: teacher.model(images) for role, teacher in method._teachers.items()}


def test_equation_1(build, batch):
    method = build("method.weights={inn: 0.3}", "method.temperatures={cnn: 2.0}", "method.label_weight=0.7")
    output = method(batch, CLOCK)
    label, conv, inv = method.student(batch.images)
    theirs = teacher_logits(method, batch.images)
    parts = {
        "label_loss": cross_entropy(label, batch.targets),
        "cnn_loss": 4 * divergence(theirs["cnn"] / 2, conv / 2),
        "inn_loss": divergence(theirs["inn"], inv),
    }
    assert output.parts.keys() == parts.keys()
    for name, value in parts.items():
        torch.testing.assert_close(output.parts[name], value)
    torch.testing.assert_close(output.loss, 0.7 * parts["label_loss"] + parts["cnn_loss"] + 0.3 * parts["inn_loss"])


def test_the_other_direction(build, batch):
    method = build("method.direction=student_teacher")
    _, conv, _ = method.student(batch.images)
    expected = divergence(conv, teacher_logits(method, batch.images)["cnn"])
    torch.testing.assert_close(method(batch, CLOCK).parts["cnn_loss"], expected)


def test_without_weights_of_the_teachers_only_labels_count(build, batch):
    method = build("method.weights={cnn: 0.0, inn: 0.0}")
    label, *_ = method.student(batch.images)
    assert method(batch, CLOCK).loss.item() == torch.nn.functional.cross_entropy(label, batch.targets).item()


def test_teachers_follow_the_order_of_the_tokens(build, batch):
    method = build("method.order=[inn, cnn]")
    _, first, second = method.student(batch.images)
    theirs, parts = teacher_logits(method, batch.images), method(batch, CLOCK).parts
    torch.testing.assert_close(parts["inn_loss"], divergence(theirs["inn"], first))
    torch.testing.assert_close(parts["cnn_loss"], divergence(theirs["cnn"], second))


def test_three_teachers(build, batch):
    method = build(
        "teachers={cnn: {recipe: cnn}, inn: {recipe: inn}, other: {recipe: cnn2}}",
        "method.order=null",
        "student.kwargs.teacher_tokens=3",
    )
    assert len(method.student(batch.images)) == 4
    assert method(batch, CLOCK).parts.keys() == {"label_loss", "cnn_loss", "inn_loss", "other_loss"}


ONE_OUTPUT = {
    "one token": ("student.kwargs.teacher_tokens=0",),
    "CNN": ("student={name: resnet8_tiny}",),
    "MLP": ("student={name: mixer_tiny_patch16_224, kwargs: {patch_size: 4, embed_dim: 32, num_blocks: 2}}",),
}


@pytest.mark.parametrize("settings", ONE_OUTPUT.values(), ids=ONE_OUTPUT)
def test_one_output_takes_all_terms(build, batch, settings):
    method = build(*settings)
    output = method(batch, CLOCK)
    logits = method.student(batch.images)
    logits = logits[0] if isinstance(logits, tuple) else logits
    theirs = teacher_logits(method, batch.images)
    expected = cross_entropy(logits, batch.targets) + sum(divergence(theirs[role], logits) for role in theirs)
    torch.testing.assert_close(output.loss, expected)


def test_without_teachers_all_tokens_may_learn_from_labels(build, batch):
    method = build("teachers={}", "method.order=null", "method.label_tokens=all")
    assert len(method.student.teacher_heads) == 2
    expected = sum(cross_entropy(each, batch.targets) for each in method.student(batch.images)) / 3
    output = method(batch, CLOCK)
    torch.testing.assert_close(output.loss, expected)
    assert output.parts.keys() == {"label_loss"}


@pytest.mark.parametrize(
    ("part", "head"), [("label_loss", "head"), ("cnn_loss", "teacher_heads.0"), ("inn_loss", "teacher_heads.1")]
)
def test_each_term_reaches_its_own_head(build, batch, part, head):
    method = build()
    method(batch, CLOCK).parts[part].backward()
    reached = {name for name, parameter in method.student.named_parameters() if parameter.grad is not None}
    heads = {name.rpartition(".")[0] for name in reached if "head" in name}
    assert heads == {head}
    assert any(name.startswith("blocks.0") for name in reached)


def test_teachers_stay_as_they_are(build, batch):
    method = build()
    before = {
        role: {name: value.clone() for name, value in teacher.model.state_dict().items()}
        for role, teacher in method._teachers.items()
    }
    method.train()
    method.student.train()
    method(batch, CLOCK).loss.backward()
    for role, teacher in method._teachers.items():
        assert all(torch.equal(value, before[role][name]) for name, value in teacher.model.state_dict().items())
        assert not any(p.requires_grad or p.grad is not None for p in teacher.model.parameters())
    assert not [name for name, _ in method.named_parameters() if not name.startswith("student.")]


def test_each_teacher_sees_the_mixed_batch_once(build, batch, monkeypatch):
    call, seen = FrozenTeacher.__call__, []

    def counting(self, images, **options):
        seen.append(images)
        return call(self, images, **options)

    monkeypatch.setattr(FrozenTeacher, "__call__", counting)
    build()(batch, CLOCK)
    assert len(seen) == 2
    assert all(images is batch.images for images in seen)


def test_accumulation_equals_one_large_batch(build, batch):
    whole, parts = build(), build()
    whole(batch, CLOCK).loss.backward()
    for half in (slice(0, 4), slice(4, 8)):
        (parts(Batch(*(tensor[half] for tensor in batch[:3])), CLOCK).loss / 2).backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_the_tokens_take_after_their_teachers(build, batch):
    method = build()
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    first = method(batch, CLOCK).parts
    for _ in range(80):
        optimizer.zero_grad()
        output = method(batch, CLOCK)
        output.loss.backward()
        optimizer.step()
    for name in ("cnn_loss", "inn_loss"):
        assert output.parts[name] < 0.1 * first[name]
    found = method.report(evaluation=[(batch.images, batch.targets.argmax(1))]).metrics
    assert found["inn_kl_inn"] < found["cnn_kl_inn"]
    assert found["cnn_kl_cnn"] < found["inn_kl_cnn"]


def test_build_loads_teachers_by_role(config, tmp_path, teacher, info):
    settings = []
    for role, name in (("cnn", "resnet8_tiny"), ("inn", "rednet_tiny")):
        card = made_up_card(
            name=name, class_names=info.class_names, mean=info.mean, std=info.std, metrics={"top1": 50.0}
        )
        save_model(tmp_path / f"{role}.safetensors", teacher(role).model, card)
        settings.append(f"teachers.{role}.weights={tmp_path / role}.safetensors")
    method = Coadvise.build(config(*settings), info)
    assert list(method.teachers()) == ["cnn", "inn"]
    assert method.teachers()["inn"]["name"] == "rednet_tiny"
    assert method.teachers()["cnn"]["top1"] == 50.0


@pytest.mark.parametrize("tokens", [1, 3])
def test_build_refuses_another_number_of_tokens(config, tokens, info):
    wrong = config(f"student.kwargs.teacher_tokens={tokens}")
    with pytest.raises(ConfigError, match=f"2 for the {tokens} teacher tokens"):
        Coadvise.build(wrong, info)


def test_corruption_errors_are_measured_where_asked_for(build, batch):
    pytest.importorskip("corrupt_tta")
    method = build("method.corruption_severities=[1]")
    found = method.report(evaluation=[(batch.images, batch.targets.argmax(1))]).metrics
    assert 0 <= found["mce"] <= 100
    assert len([name for name in found if name.startswith("error_")]) == 15
    assert method.student.training
    assert "mce" not in build().report(evaluation=[(batch.images, batch.targets.argmax(1))]).metrics
