"""DINO: loss, head, crops, teacher and centre."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from mae_lite_distill.config import DINOConfig
from mae_lite_distill.losses import self_distillation_loss
from mae_lite_distill.methods.dino import DINO
from mae_lite_distill.models.crops import class_token
from mae_lite_distill.models.heads import PrototypeHead
from mae_lite_distill.tests.mae_samples import INFO, MICRO_DINO, resolve
from mae_lite_distill.views import MultiCrop
from vitutor_core.data.types import Batch
from vitutor_core.errors import ConfigError
from vitutor_core.train.method import Clock

FIRST = Clock(0, 10, 20)


def build(*settings):
    torch.manual_seed(0)
    released = ("dino.batch_norm=false", "dino.momentum=0.996")
    return DINO.build(resolve("dino", *MICRO_DINO, *released, *settings), INFO)


def batch(number=6):
    images = torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros(number).long(), torch.arange(number))


def test_loss_by_hand():
    """Two classes: the teacher's odds are exp((a - b - (c0 - c1)) / its temperature)."""
    teacher = torch.tensor([[0.3, 0.1]], dtype=torch.float64)
    student = torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    centre = torch.tensor([0.1, 0.0], dtype=torch.float64)
    p = 1 / (1 + math.exp(-(0.2 - 0.1) / 0.05))  # 0.8808
    q = 1 / (1 + math.exp(-(0.2 - 0.5) / 0.1))  # 0.0474
    expected = -p * math.log(q) - (1 - p) * math.log(1 - q)
    options = {"temperature": 0.1, "teacher_temperature": 0.05}
    # The pair of the same view does not count.
    found = self_distillation_loss([teacher, student], [teacher], centre, **options)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    # Uniform outputs: ln 2 for each pair, of both views and a local crop.
    flat = torch.zeros(4, 2)
    assert self_distillation_loss([flat] * 3, [flat] * 2, torch.zeros(2), **options).item() == pytest.approx(
        math.log(2)
    )
    # Where the centre is what the teacher says, its target is uniform: it says nothing.
    found = self_distillation_loss([teacher, student], [teacher], teacher[0], **options)
    assert found.item() == pytest.approx(-0.5 * (math.log(q) + math.log(1 - q)), rel=1e-5)


def test_no_gradient_reaches_the_teacher_and_shapes_are_checked():
    student, teacher = (torch.randn(3, 4, requires_grad=True) for _ in range(2))
    options = {"temperature": 0.1, "teacher_temperature": 0.05}
    self_distillation_loss([teacher.detach(), student], [teacher], torch.zeros(4), **options).backward()
    assert teacher.grad is None
    assert student.grad is not None
    for views, centre in (([student], 4), ([student, student[:2]], 4), ([student, student], 3)):
        with pytest.raises(ValueError, match="self_distillation_loss"):
            self_distillation_loss(views, [teacher], torch.zeros(centre), **options)


def test_the_head_is_that_of_the_released_code():
    head = PrototypeHead(192, hidden=2048, bottleneck=256, prototypes=65536)
    # 192 x 2048 + 2048, 2048 x 2048 + 2048, 2048 x 256 + 256, and 256 x 65536 prototypes
    assert sum(parameter.numel() for parameter in head.parameters()) == 395_264 + 4_196_352 + 524_544 + 16_777_216
    # A BatchNorm has a weight and a bias for each channel, and takes the place of the layer's bias.
    normed = PrototypeHead(192, hidden=2048, bottleneck=256, prototypes=65536, batch_norm=True)
    assert sum(parameter.numel() for parameter in normed.parameters()) - 2 * 2048 == 21_893_376
    assert [type(layer).__name__ for layer in normed.mlp] == [*["Linear", "BatchNorm1d", "GELU"] * 2, "Linear"]
    small = PrototypeHead(6, hidden=5, bottleneck=4, prototypes=3).double()
    tokens = torch.randn(2, 6, dtype=torch.float64)
    # torch's own weight normalisation, with the lengths fixed at 1.
    reference = torch.nn.Linear(4, 3, bias=False).double()
    reference.weight.data.copy_(small.prototypes.weight)
    reference = torch.nn.utils.parametrizations.weight_norm(reference)
    reference.parametrizations.weight.original0.data.fill_(1.0)
    torch.testing.assert_close(small(tokens), reference(F.normalize(small.mlp(tokens), dim=-1)))


def test_prototypes_are_kept_at_first():
    method = build("dino.frozen_epochs=1").train()
    for step, moves in ((0, False), (9, False), (10, True)):
        method.zero_grad()
        clock = Clock(step, 10, 20)
        method(method.prepare(batch(), clock), clock).loss.backward()
        assert bool(method.head.prototypes.weight.grad.any()) == moves
        assert method.head.mlp[0].weight.grad.any()


def test_a_class_token_of_another_size():
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3}
    vit = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(class_token(vit, images), vit.forward_features(images)[:, 0])
    # timm resamples the positions of a model that takes any size.
    any_size = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **sizes).eval()
    any_size.load_state_dict(vit.state_dict())
    crops = images[:, :, :8, :12]
    torch.testing.assert_close(class_token(vit, crops), any_size.forward_features(crops)[:, 0])


def test_crops_are_functions_of_the_seed():
    crops, images = MultiCrop(DINOConfig(local_crops=3, local_size=8), INFO), batch().images
    torch.manual_seed(5)
    found = crops(images)
    assert [tuple(view.shape) for view in found] == [(6, 3, 16, 16)] * 2 + [(6, 3, 8, 8)] * 3
    torch.manual_seed(5)
    assert all(map(torch.equal, found, crops(images)))
    assert not torch.equal(found[2], found[3])


def test_teacher_and_centre_follow_and_are_saved():
    method = build().train()
    assert not method.teacher.training
    initial = method.teacher.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        method.student.blocks[0].mlp.fc1.weight.add_(1.0)
    for _ in range(2):  # two micro-batches of one update
        prepared = method.prepare(batch(), FIRST)
    torch.testing.assert_close(method.teacher.blocks[0].mlp.fc1.weight, initial + 0.004)
    both = torch.cat(prepared.drawn["views"][:2])
    with torch.no_grad():
        outputs = method.teacher_head(method.teacher.forward_features(both)[:, 0])
    output = method(prepared, FIRST)
    torch.testing.assert_close(method.centre, 0.1 * outputs.mean(0))
    output.loss.backward()
    method(prepared, FIRST)
    torch.testing.assert_close(method.centre, 0.19 * outputs.mean(0))
    without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
    of_teacher = {name for name, _ in method.named_parameters() if name.startswith("teacher")}
    assert without == of_teacher | {"student.head.weight", "student.head.bias"}
    assert of_teacher | {"centre"} <= method.state_dict().keys()


def test_the_loss_is_that_of_all_pairs():
    method = build("dino.local_crops=1").train()
    prepared = method.prepare(batch(), FIRST)
    first, second, local = prepared.drawn["views"]
    method.centre.copy_(torch.linspace(-0.1, 0.1, 24))
    centre = method.centre.clone()

    def said(vit, head, view):
        return head(class_token(vit, view))

    terms = []
    for taught in (first, second):
        target = ((said(method.teacher, method.teacher_head, taught) - centre) / 0.04).exp()
        target = target / target.sum(1, keepdim=True)
        for seen in (first, second, local):
            if seen is not taught:
                student = said(method.student, method.head, seen) / 0.1
                terms.append(-(target * (student - student.logsumexp(1, keepdim=True))).sum(1).mean())
    assert len(terms) == 4
    torch.testing.assert_close(method(prepared, FIRST).loss, sum(terms) / 4)


@pytest.mark.parametrize("side", [6, 20])
def test_local_crops_that_do_not_fit(side):
    with pytest.raises(ConfigError, match=rf"dino.local_size: {side}; set a multiple of 4, up to 16"):
        build(f"dino.local_size={side}")


def test_without_local_crops_their_size_does_not_matter():
    method = build("dino.local_crops=0", "dino.local_size=96").train()
    prepared = method.prepare(batch(), FIRST)
    assert len(prepared.drawn["views"]) == 2
    assert method(prepared, FIRST).loss.isfinite()
