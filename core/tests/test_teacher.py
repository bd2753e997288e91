from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from conformance.records import made_up_card
from core.tests.test_weights import EVIL, write_evil
from core.tests.train_samples import run, same
from vitutor_core.data.types import DataInfo
from vitutor_core.distill import teacher as teacher_module
from vitutor_core.distill.teacher import FrozenTeacher, load_teacher
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.models import weights
from vitutor_core.models.weights import create_model, save_model, weights_sha256
from vitutor_core.schema import ModelConfig, TeacherConfig
from vitutor_core.train.method import StepOutput
from vitutor_core.train.supervised import Supervised

DIGITS = tuple("0123456789")
CNN = ModelConfig(name="resnet8_tiny")
INFO = DataInfo(
    name="digits",
    class_names=DIGITS,
    image_size=16,
    channels=3,
    mean=(0.3, 0.4, 0.5),
    std=(0.2, 0.25, 0.3),
    num_train=100,
    num_eval=100,
    fingerprint="x",
)


def cnn():
    torch.manual_seed(1)
    model = create_model(CNN, num_classes=10, image_size=16, channels=3)
    model(torch.randn(8, 3, 16, 16))  # in training mode: statistics that are not the initial ones
    return model


def card(**changes):
    known = {"class_names": DIGITS, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    return made_up_card(**({"name": CNN.name, "kwargs": {"in_chans": 3}, "metrics": {"top1": 97.0}} | known | changes))


def frozen(model, **changes):
    return FrozenTeacher(
        model, **({"name": "t", "mean": INFO.mean, "std": INFO.std, "image_size": 16, "info": INFO} | changes)
    )


class Taught(Supervised):
    """Matches a teacher's logits."""

    @classmethod
    def build(cls, config, info):
        method = super().build(config, info)
        method._teacher = frozen(cnn(), mean=info.mean, std=info.std)
        cls.last = method
        return method

    def forward(self, batch, clock):
        taught = F.mse_loss(self.student(batch.images), self._teacher(batch.images).logits)
        return StepOutput(taught)

    def teachers(self):
        return {"cnn": self._teacher.facts}


def test_a_teacher_is_never_trained_saved_or_changed(tmp_path):
    result = run(tmp_path / "run", "train.epochs=1", build=Taught.build)
    method, teacher = Taught.last, Taught.last._teacher
    assert same(teacher.model.state_dict(), cnn().state_dict())  # running statistics included
    assert not any(module.training for module in teacher.model.modules())
    assert all(not p.requires_grad and p.grad is None for p in teacher.model.parameters())
    assert {name.partition(".")[0] for name, _ in method.named_parameters()} == {"student"}
    assert {name.partition(".")[0] for name in method.state_dict()} == {"student"}
    assert not teacher(torch.randn(2, 3, 16, 16)).logits.requires_grad
    assert result["teachers"]["cnn"]["sha256"] == weights_sha256(cnn().state_dict())


def test_another_teacher_is_another_run(tmp_path):
    run(tmp_path / "run", "train.epochs=1", build=Taught.build)

    class Other(Taught):
        @classmethod
        def build(cls, config, info):
            method = super().build(config, info)
            method._teacher.facts["sha256"] = "0" * 64
            return method

    with pytest.raises(ConfigError, match=r"teachers\.cnn: '\w{12}\.\.\.' -> '0{12}\.\.\.'"):
        run(tmp_path / "run", "train.epochs=1", build=Other.build)


def test_training_mode_is_refused():
    teacher = frozen(cnn())
    teacher.model.train()
    with pytest.raises(ValueError, match="training mode"):
        teacher(torch.zeros(1, 3, 16, 16))


def test_pixels_reach_the_teacher_in_its_own_normalisation():
    pixels = torch.rand(4, 3, 16, 16)
    of_student = (pixels - torch.tensor(INFO.mean).view(3, 1, 1)) / torch.tensor(INFO.std).view(3, 1, 1)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    teacher = frozen(cnn(), mean=mean, std=std)
    torch.testing.assert_close(teacher.adapt(of_student), expected, rtol=0, atol=2e-6)  # values up to 2.6
    with torch.no_grad():
        logits = cnn().eval()(expected)
    torch.testing.assert_close(teacher(of_student).logits, logits, rtol=1e-4, atol=1e-5)


def test_images_pass_untouched_where_nothing_differs():
    images = torch.randn(2, 3, 16, 16)
    assert frozen(cnn()).adapt(images) is images


def test_images_are_brought_to_the_size_of_the_teacher():
    ramp = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
    found = frozen(cnn(), image_size=32).adapt(ramp)
    assert found.shape == (1, 3, 32, 32)
    # A ramp stays a ramp: pixel centres at (i + 0.5) / 2 - 0.5, away from the border.
    expected = (((torch.arange(32) + 0.5) / 2 - 0.5) / 15).expand(32, 32)
    torch.testing.assert_close(found[0, 0, :, 4:-4], expected[:, 4:-4], rtol=0, atol=1e-6)
    assert frozen(cnn(), image_size=8).adapt(ramp).shape == (1, 3, 8, 8)


def test_a_run_folder_or_a_file_is_a_teacher(tmp_path):
    save_model(tmp_path / "student.safetensors", cnn(), card())
    for given in (tmp_path, tmp_path / "student.safetensors"):
        teacher = load_teacher(TeacherConfig(weights=str(given)), INFO)
        assert teacher.facts == {"name": CNN.name, "sha256": weights_sha256(cnn().state_dict()), "top1": 97.0}
    images = torch.randn(2, 3, 16, 16)
    expected = frozen(cnn(), mean=card().mean, std=card().std)(images).logits
    assert torch.equal(teacher(images).logits, expected)


def test_plain_weights_are_a_teacher_if_their_architecture_is_named(tmp_path):
    save_file(cnn().state_dict(), tmp_path / "student.safetensors")
    for given in (tmp_path, tmp_path / "student.safetensors"):
        teacher = load_teacher(TeacherConfig(model=CNN, weights=str(given)), INFO)
        assert same(teacher.model.state_dict(), cnn().state_dict())
    with pytest.raises(CheckpointError, match=r"student\.safetensors: has no model card; name its architecture"):
        load_teacher(TeacherConfig(weights=str(tmp_path)), INFO)
    other = ModelConfig(name="vit_tiny_patch16_224", kwargs={"patch_size": 8})
    with pytest.raises(CheckpointError, match=r"student\.safetensors: weights of another model"):
        load_teacher(TeacherConfig(model=other, weights=str(tmp_path)), INFO)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (tuple("abc"), "the teacher knows 3 classes, the data has 10"),
        ((*DIGITS[:3], "drei", *DIGITS[4:]), "class 3 is 'drei' for the teacher and '3' in the data"),
        (tuple(reversed(DIGITS)), "class 0 is '9' for the teacher and '0' in the data"),
    ],
)
def test_other_classes_are_refused_by_number_and_by_name(tmp_path, classes, expected):
    model = create_model(CNN, num_classes=len(classes), image_size=16, channels=3)
    path = tmp_path / "teacher.safetensors"
    save_model(path, model, card(class_names=classes))
    with pytest.raises(ConfigError, match=f"{path}: {expected}") as caught:
        load_teacher(TeacherConfig(weights=str(path)), INFO)
    assert caught.value.exit_code == 2


def test_a_teacher_of_1000_classes_is_refused_before_its_weights_are_fetched(monkeypatch):
    monkeypatch.setattr(weights.timm, "create_model", lambda *_, **__: pytest.fail("asked for the weights"))
    config = TeacherConfig(model=ModelConfig(name="resnet18.a1_in1k", pretrained=True))
    with pytest.raises(ConfigError, match=r"teacher resnet18\.a1_in1k has 1000 classes, the data digits 10"):
        load_teacher(config, INFO)


def test_a_pretrained_encoder_without_classes_is_a_teacher(monkeypatch):
    config = {"name": "vit_base_patch16_224.mae", "pretrained": True}
    with pytest.raises(ConfigError, match=r"has no classes; set teacher\.model\.kwargs\.num_classes=0"):
        load_teacher(TeacherConfig(model=ModelConfig(**config)), INFO)
    asked = []
    monkeypatch.setattr(teacher_module, "create_model", lambda model, **_: asked.append(model) or torch.nn.Identity())
    wanted = ModelConfig(**config, kwargs={"num_classes": 0})
    load_teacher(TeacherConfig(model=wanted), INFO)
    assert asked == [wanted]


def test_an_untrained_teacher_is_refused():
    with pytest.raises(ConfigError, match=r"teacher\.model: an untrained teacher"):
        load_teacher(TeacherConfig(model=CNN), INFO)
    with pytest.raises(ConfigError, match="teacher: no weights given"):
        load_teacher(TeacherConfig(recipe="cnn"), INFO)
    with pytest.raises(ConfigError, match=r"teacher\.model: timm has no weights for resnet8_tiny"):
        load_teacher(TeacherConfig(model=ModelConfig(name="resnet8_tiny", pretrained=True)), INFO)


@pytest.mark.parametrize("kind", EVIL)
@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors"])
@pytest.mark.parametrize("model", [None, CNN])
def test_pickled_weights_are_refused_and_not_run(tmp_path, kind, name, model):
    write_evil(tmp_path / name, kind, tmp_path / "marker")
    with pytest.raises(CheckpointError, match=f"{name}: not a safetensors file; pickled checkpoints are not loaded"):
        load_teacher(TeacherConfig(model=model, weights=str(tmp_path / name)), INFO)
    assert not (tmp_path / "marker").exists()


def test_the_student_does_not_reach_the_teacher_through_its_gradient():
    teacher = frozen(cnn())
    images = torch.randn(2, 3, 16, 16, requires_grad=True)
    before = copy.deepcopy(teacher.model.state_dict())
    student = cnn()
    F.mse_loss(student(images), teacher(images).logits).backward()
    assert same(teacher.model.state_dict(), before)
    assert all(p.grad is None for p in teacher.model.parameters())
    assert student.fc.weight.grad.abs().sum() > 0


def other_classes(tmp_path, *, has_card):
    torch.manual_seed(1)
    model = create_model(CNN, num_classes=3, image_size=16, channels=3)
    path = tmp_path / "teacher.safetensors"
    if has_card:
        save_model(path, model, card(class_names=tuple("abc")))
    else:
        save_file(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("has_card", [True, False])
def test_a_teacher_of_other_images_is_one_where_no_logits_are_read(tmp_path, has_card):
    model, path = other_classes(tmp_path, has_card=has_card)
    config = TeacherConfig(weights=str(path), model=None if has_card else CNN)
    with pytest.raises((ConfigError, CheckpointError), match=r"3 classes, the data has 10|other shape: fc\.bias 3"):
        load_teacher(config, INFO)
    with nullcontext() if has_card else pytest.warns(UserWarning, match=r"fc\.weight, fc\.bias: left as initialised"):
        teacher = load_teacher(config, INFO, reads_logits=False)
    images = torch.randn(2, 3, 16, 16)
    expected = model.eval().forward_intermediates(teacher.adapt(images), indices=[2], intermediates_only=True)
    assert torch.equal(teacher(images, features=[2]).features[0], expected[0])
    with pytest.raises(ValueError, match="reads_logits=False, and its logits are read"):
        teacher(images)


def test_an_encoder_without_classes_is_no_teacher_of_logits(tmp_path):
    model = create_model(CNN, num_classes=0, image_size=16, channels=3)
    path = tmp_path / "encoder.safetensors"
    save_model(path, model, card(class_names=(), kwargs={"in_chans": 3, "num_classes": 0}, metrics={}))
    with pytest.raises(ConfigError, match="the teacher knows 0 classes, the data has 10"):
        load_teacher(TeacherConfig(weights=str(path)), INFO)
    assert same(
        load_teacher(TeacherConfig(weights=str(path)), INFO, reads_logits=False).model.state_dict(), model.state_dict()
    )


def test_timm_is_asked_for_other_classes_where_no_logits_are_read(monkeypatch):
    asked = []
    monkeypatch.setattr(teacher_module, "create_model", lambda model, **_: asked.append(model) or torch.nn.Identity())
    wanted = ModelConfig(name="resnet18.a1_in1k", pretrained=True)
    load_teacher(TeacherConfig(model=wanted), INFO, reads_logits=False)
    assert asked == [wanted]
