"""Arguments of one model are not those of another, and weights are loaded by models of as many heads alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm
import torch

from conformance.records import made_up_card
from core.tests.train_samples import TINY
from vitutor_core.config import fingerprinted
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_model, save_model
from vitutor_core.schema import ModelConfig, RunConfig, TeacherConfig


class Config(RunConfig):
    agent: ModelConfig = fingerprinted(help="another model")
    teachers: dict[str, TeacherConfig] = fingerprinted(help="teachers")


VALUES = TINY | {
    "agent": TINY["student"],
    "teachers": {"cnn": {"model": {"name": "resnet18", "kwargs": {"drop_rate": 0.1}}}},
}


def changed(*settings: str) -> Config:
    return Config.from_mapping(VALUES, where="test").changed(settings)


@pytest.mark.parametrize(
    ("path", "said"),
    [("student", "num_heads=2"), ("agent", "num_heads=2"), ("teachers.cnn.model", "drop_rate=0.1")],
)
def test_another_model_keeps_no_arguments_and_says_so(path: str, said: str) -> None:
    def model(config: Config) -> ModelConfig:
        for part in path.split("."):
            config = config[part] if isinstance(config, dict) else getattr(config, part)
        return config  # type: ignore[return-value]

    with pytest.warns(UserWarning, match=rf"{path}\.name: .* swin_tiny_patch4_window7_224 \(.*{said}.*\.kwargs\.KEY"):
        found = changed(f"{path}.kwargs.drop_rate=0.5", f"{path}.name=swin_tiny_patch4_window7_224")
    assert model(found).kwargs == {"drop_rate": 0.5}  # in either order, as both were asked for


@pytest.mark.parametrize(
    ("settings", "kwargs"),
    [
        (("student.name=vit_small_patch16_224", 'student.kwargs={"depth": 2}'), {"depth": 2}),
        (('student={"name": "resnet18"}',), {}),
        (("student.name=vit_tiny_patch16_224.augreg_in21k",), TINY["student"]["kwargs"]),  # the same with other weights
        (("student.name=resnet18", "student.name=vit_tiny_patch16_224"), TINY["student"]["kwargs"]),
        (("student.kwargs.depth=2",), TINY["student"]["kwargs"] | {"depth": 2}),
    ],
)
def test_nothing_is_said_where_nothing_is_lost(settings: tuple[str, ...], kwargs: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert changed(*settings).student.kwargs == kwargs


SIZES = {"patch_size": 8, "embed_dim": 24, "depth": 1}


def build(**values: object) -> torch.nn.Module:
    return create_model(ModelConfig(**values), num_classes=3, image_size=16, channels=3)


@pytest.mark.parametrize(("trained", "asked"), [(3, 12), (12, 3), (2, 1)])
def test_weights_of_other_numbers_of_heads_are_refused(tmp_path: Path, trained: int, asked: int) -> None:
    name, path = "vit_tiny_patch16_224", tmp_path / "w.safetensors"
    card = made_up_card(name=name, kwargs={**SIZES, "num_heads": trained, "img_size": 16}, std=(0.5, 0.5, 0.5))
    save_model(path, build(name=name, kwargs={**SIZES, "num_heads": trained}), card)
    build(name=name, kwargs={**SIZES, "num_heads": trained}, weights=str(path))
    with pytest.raises(ConfigError, match=rf"{path}: trained with {trained} heads in blocks\.0\.attn, .* has {asked};"):
        build(name=name, kwargs={**SIZES, "num_heads": asked}, weights=str(path))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_tiny_patch16_224", {"num_heads": 12}),
        ("deit_tiny_patch16_224", {"num_heads": 1}),
        ("swin_tiny_patch4_window7_224", {"num_heads": (6, 6, 12, 24)}),
    ],
)
def test_pretrained_weights_of_other_numbers_of_heads_are_refused_before_the_download(
    name: str, kwargs: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    built, create = [], timm.create_model

    def watched(name: str, pretrained: bool = False, **kwargs: object) -> torch.nn.Module:
        built.append(pretrained)
        model: torch.nn.Module = create(name, pretrained=False, **kwargs)
        return model

    monkeypatch.setattr(timm, "create_model", watched)
    monkeypatch.setattr("vitutor_core.models.weights.fetch", lambda *_: None)
    with pytest.raises(ConfigError, match=rf"weights of {name}: trained with \d+ heads in .*let num_heads"):
        build(name=name, kwargs=kwargs, pretrained=True)
    assert True not in built
    torch.manual_seed(0)
    build(name="vit_tiny_patch16_224", kwargs={"drop_path_rate": 0.1, "num_heads": 3}, pretrained=True)
    assert built.count(True) == 1
    drawn = torch.rand(1)
    torch.manual_seed(0)
    create("vit_tiny_patch16_224", num_classes=3, in_chans=3, img_size=16, drop_path_rate=0.1, num_heads=3)
    assert torch.equal(torch.rand(1), drawn)  # what is only looked at draws nothing
