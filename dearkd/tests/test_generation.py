"""One batch of images: schedule, phases, seeds, classes; and configs that cannot work."""

from __future__ import annotations

import pytest
import torch

from dearkd.generation.batch import batch_labels, generate_batch, learning_rate
from dearkd.generation.commands import resolve_generation
from dearkd.generation.config import GenerationConfig, PhaseConfig
from dearkd.generation.generate import Generation
from dearkd.generation.objective import BatchNormStatistics, objective, view_of
from dearkd.generation.teacher import open_competitor, open_teacher
from dearkd.tests.generation_samples import ConvTeacher, made, micro
from vitutor_core.errors import CheckpointError, ConfigError, NonFiniteError

CPU = torch.device("cpu")


def test_the_loss_falls_and_pixels_stay_in_range(opened):
    model, info = opened
    sizes = {"num_images": 40, "classes_per_batch": 10, "images_per_class": 4}
    phases, terms = [{"iterations": 60, "lr": 0.2, "warmup": 4}], {"bn": 1.0, "first_bn": 1.0}
    config = micro("unused", phases=phases, terms=terms, **sizes)
    ticks = []
    batch = generate_batch(
        model, info, config, 0, device=CPU, tick=lambda done, figures: ticks.append((done, figures.get("loss")))
    )
    assert [done for done, _ in ticks] == list(range(1, 61))
    assert batch.log[-1]["loss"] < 0.95 * batch.log[0]["loss"]
    assert batch.log[-1]["label"] < batch.log[0]["label"]
    assert batch.log[-1]["bn"] < batch.log[0]["bn"]
    assert batch.pixels.min() >= 0
    assert batch.pixels.max() <= 1
    assert torch.bincount(batch.labels, minlength=10).tolist() == [4] * 10


def test_batches_are_functions_of_seed_and_index(opened):
    model, info = opened

    def pixels(index, **changes):
        return generate_batch(model, info, micro("unused", **changes), index, device=CPU).pixels

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))
    assert not torch.equal(pixels(0), pixels(0, seed=1))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_colour_and_own_small_images(opened):
    model, info = opened
    coloured = generate_batch(model, info, micro("unused", grey=False), 0, device=CPU).pixels
    assert (coloured[:, 0] - coloured[:, 1]).abs().max() > 0.01
    own = generate_batch(model, info, micro("unused", low_resolution="own"), 0, device=CPU).pixels
    assert own.shape == (6, 3, 16, 16)
    grey = generate_batch(model, info, micro("unused"), 0, device=CPU).pixels
    assert not torch.equal(own, grey)
    # A first phase alone would leave images of half the side; its enlargement is smoother than noise at full size.
    rough = [(images[..., 1:] - images[..., :-1]).abs().mean() for images in (own, grey)]
    assert rough[0] < rough[1]


def test_the_gradient_of_a_shrunk_view_is_constant_over_its_pixels(opened):
    model, _ = opened
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    config = micro("unused")
    with BatchNormStatistics(model, first=1.0) as statistics:
        view = view_of(images, shrink=2, roll=(1, -2), mirror=True)
        assert view.shape == (4, 3, 8, 8)
        loss = objective(model, statistics, view, torch.tensor([0, 0, 1, 1]), config.terms).loss
    (gradient,) = torch.autograd.grad(loss, images)
    blocks = gradient.unfold(2, 2, 2).unfold(3, 2, 2)
    assert (blocks == blocks[..., :1, :1]).all()
    assert gradient.abs().sum() > 0
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_classes_are_dealt_out_evenly():
    config = GenerationConfig(teacher={"weights": "x"}, num_images=42 * 10)
    rounds = [batch_labels(config, 17, index) for index in range(9)]
    for labels in rounds:
        assert torch.bincount(labels).unique().tolist() in ([0, 7], [7])
        assert labels.unique().numel() == 6
    # 17 classes are a round of three batches of six, the last one filled up with one class.
    for first in (0, 3, 6):
        counts = torch.bincount(torch.cat(rounds[first : first + 3]), minlength=17)
        assert sorted(counts.tolist()) == [7] * 16 + [14]
    assert not torch.equal(rounds[0], rounds[3])
    assert torch.equal(batch_labels(config, 17, 4), rounds[4])


def test_constant_schedule_has_no_warm_up():
    phase = PhaseConfig(iterations=10, lr=0.05, schedule="constant")
    assert {learning_rate(phase, iteration) for iteration in range(10)} == {0.05}


def test_a_teacher_without_batch_norm_is_refused():
    teacher = ConvTeacher()
    for name in ("bn1", "bn2", "bn3"):
        setattr(teacher, name, torch.nn.Identity())
    with pytest.raises(ConfigError, match="teacher ConvTeacher: no BatchNorm statistics to invert") as caught:
        BatchNormStatistics(teacher, first=1.0)
    assert "\n" not in str(caught.value)
    teacher.bn1 = torch.nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(ConfigError, match="no BatchNorm statistics"):
        BatchNormStatistics(teacher, first=1.0)


def test_competition_with_a_student(teacher, opened, finished_student, tmp_path):
    _, info = opened
    student, logits = open_competitor(str(finished_student), info, CPU)
    view = torch.randn(2, 3, 16, 16).requires_grad_()
    assert logits(view).shape == logits(view[..., ::2, ::2]).shape == (2, 10)  # a first phase's view is enlarged
    assert torch.autograd.grad(logits(view).sum(), view)[0].abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in student.model.parameters())
    changes = {"competitor": str(finished_student), "terms": {"bn": 1.0, "competition": 0.2}}
    _, record = made(teacher, tmp_path, **changes)
    assert 0 <= record["last_iteration"]["competition"] <= 1
    assert record["networks"]["competitor"]["name"] == "dearkd_tiny_patch16_224"
    with pytest.raises(CheckpointError, match="no such weights file"):
        Generation(micro(teacher, **changes | {"competitor": str(tmp_path / "nothing")}), "test", tmp_path)


WRONG = {
    "num_images": ({"num_images": 13}, "not a multiple of a batch of 6 .* take 12 or 18"),
    "phases": ({"phases": [{"iterations": 1, "lr": 0.1, "shrink": 2}]}, "the last one must have shrink 1"),
    "competition": ({"terms": {"competition": 0.2}}, "terms.competition and competitor go together"),
    "pairs": (
        {"images_per_class": 1, "terms": {"triplet": 1.0}},
        "need two images per class",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_configs_that_cannot_work(name):
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        micro("x", **changes)


def test_configs_that_do_not_fit_the_teacher(teacher, tmp_path):
    with pytest.raises(ConfigError, match="classes_per_batch is 12, the teacher has 10 classes"):
        Generation(micro(teacher, classes_per_batch=12, num_images=24), "test", tmp_path)
    phases = [{"iterations": 1, "lr": 0.1, "shrink": 3}, {"iterations": 1, "lr": 0.1}]
    with pytest.raises(ConfigError, match="16 px are not a multiple of shrink 3"):
        Generation(micro(teacher, phases=phases), "test", tmp_path)
    config = resolve_generation("imagenet", None, "plain", ())
    with pytest.raises(ConfigError, match="its classes have no names"):
        open_teacher(config.changed(["teacher={model: {name: resnet8_tiny}}", "classes_per_batch=6"]), CPU)


def test_a_loss_that_is_none_stops_the_batch(opened):
    model, info = opened
    config = micro("unused", phases=[{"iterations": 4, "lr": 1e30, "schedule": "constant"}], clamp=False)
    with pytest.raises(NonFiniteError, match=r"batch 0: the loss is (nan|inf) at iteration \d; lower lr"):
        generate_batch(model, info, config, 0, device=CPU)
