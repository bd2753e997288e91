"""SEED: the loss by hand, a queue that moves, a teacher that never changes, students of any family."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from mae_lite_distill.config import CompressionConfig
from mae_lite_distill.losses import similarity_loss
from mae_lite_distill.method import MAELite
from mae_lite_distill.methods.compression import Compression
from mae_lite_distill.tests.mae_samples import INFO, MICRO_MOCO, resolve, train_row
from vitutor_core.data.types import Batch
from vitutor_core.distill import FrozenTeacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import save_tensors
from vitutor_core.train.method import Clock

CLOCK = Clock(0, 10, 10)
SMALL = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}


def build(student=None, queue=6):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SMALL)
    teacher = timm.create_model("vit_tiny_patch16_224", **{**SMALL, "embed_dim": 24})
    frozen = FrozenTeacher(teacher, name="t", mean=INFO.mean, std=INFO.std, image_size=16, info=INFO)
    return Compression(student or model, CompressionConfig(queue=queue, hidden=8), frozen)


def batch(number=4, seed=1):
    images = torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Batch(images, torch.zeros(number).long(), torch.arange(number))


def test_the_loss_by_hand():
    student, teacher = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    queue = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    # Cosines: of the student 1, 0 and 0 with the teacher's own; of the teacher 0, -1 and 1.
    targets = torch.tensor([0.0, -1.0, 1.0]).div(0.5).softmax(0)
    log_probabilities = torch.tensor([1.0, 0.0, 0.0]).div(2.0).log_softmax(0)
    loss = similarity_loss(student, teacher, queue, student_temperature=2.0, teacher_temperature=0.5)
    torch.testing.assert_close(loss, -(targets * log_probabilities).sum())
    eye = torch.eye(5, dtype=torch.float64)
    # Alike and alone: all weight on the own feature, whose share is 1 / (1 + 4 exp(-1 / t)).
    found = similarity_loss(eye[:1], eye[:1], eye[1:].float(), student_temperature=0.2, teacher_temperature=1e-4)
    assert found.item() == pytest.approx(math.log(1 + 4 * math.exp(-5)), rel=1e-5)
    with pytest.raises(ValueError, match="similarity_loss"):
        similarity_loss(eye[:, :3], eye, eye, student_temperature=1, teacher_temperature=1)


def test_the_queue_holds_the_newest_features_of_the_teacher():
    method = build()
    first = method.queue.clone()
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    output = method(batch(), CLOCK)
    features = F.normalize(method._taught(batch().images), dim=1)
    torch.testing.assert_close(method.queue, torch.cat([features, first[:2]]))
    student = method.projector(method._features(batch().images))
    expected = similarity_loss(student, features, first, student_temperature=0.2, teacher_temperature=0.01)
    torch.testing.assert_close(output.loss, expected)
    assert "queue" in method.state_dict()
    method(batch(10, seed=2), CLOCK)  # more than the queue holds
    features = F.normalize(method._taught(batch(10, seed=2).images), dim=1)
    torch.testing.assert_close(method.queue, features[:6])


def test_gradients_reach_the_encoder_and_never_the_teacher():
    method = build()
    method(batch(), CLOCK).loss.backward()
    without = {name for name, value in method.named_parameters() if value.grad is None}
    assert without == {"student.head.weight", "student.head.bias"}
    assert all(value.grad is None for value in method._teacher.model.parameters())
    method._teacher.model.train()
    with pytest.raises(ValueError, match="training mode"):
        method(batch(), CLOCK)


def test_a_cnn_is_compressed_into_and_fine_tuned(tmp_path):
    student = timm.create_model("efficientnet_b0", num_classes=10)
    method = build(student)
    method(batch(), CLOCK).loss.backward()
    assert not student.classifier.weight.requires_grad
    assert method._features(batch().images).shape == (4, 1280)
    save_tensors(tmp_path / "encoder.safetensors", student.state_dict())
    torch.manual_seed(7)
    start = f"student={{name: efficientnet_b0, weights: {tmp_path / 'encoder.safetensors'}}}"
    tuned = MAELite.build(resolve_plain("scratch", start), INFO).student
    torch.manual_seed(7)
    fresh = timm.create_model("efficientnet_b0", num_classes=10)
    assert torch.equal(tuned.conv_stem.weight, student.conv_stem.weight)
    assert torch.equal(tuned.classifier.weight, fresh.classifier.weight)


# The first reads its features through another layer, the second has two classifiers.
@pytest.mark.parametrize(
    ("name", "kwargs", "width"), [("mobilenetv3_small_050", {}, 1024), ("deit_tiny_distilled_patch16_224", SMALL, 16)]
)
def test_students_whose_head_is_more_than_a_linear_layer(name, kwargs, width):
    student = timm.create_model(name, **{"num_classes": 10, **kwargs})
    method = build(student)
    assert method.projector[0].in_features == width
    method(batch(), CLOCK).loss.backward()
    heads = {"classifier", "head", "head_dist"}
    without = {key.removeprefix("student.") for key, value in method.named_parameters() if value.grad is None}
    assert without == {key for key, _ in student.named_parameters() if key.split(".")[0] in heads}


def test_a_model_that_does_not_say_its_features_is_refused():
    student = timm.create_model("vit_tiny_patch16_224", **SMALL)
    del student.head_hidden_size
    with pytest.raises(ConfigError, match="student: VisionTransformer does not say how many features"):
        build(student)


def resolve_plain(row, *settings):
    from mae_lite_distill.cli import PAPER

    return PAPER.resolve("digits", None, row, settings)


def test_rows_of_a_wider_teacher(tmp_path):
    short = ("train.epochs=1", "optim.warmup_epochs=0")
    train_row("moco_teacher", tmp_path / "t", *short, *MICRO_MOCO, "student.kwargs.embed_dim=32")
    settings = (*short, "compress.queue=32", "compress.hidden=8", f"teacher.weights={tmp_path / 't'}")
    assert MAELite.build(resolve("seed", *settings), INFO).queue.shape == (32, 32)
    result = train_row("seed", tmp_path / "s", *settings)
    assert result["metrics"].keys() == {"knn_top1", "images"}
    assert result["teachers"]["moco"]["name"] == "vit_tiny_patch16_224"
