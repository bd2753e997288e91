"""No model cuts a border off its images without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.tests.train_samples import run
from vitutor_core.data.types import DataInfo
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.weights import create_model
from vitutor_core.schema import ModelConfig, TeacherConfig

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}
PATCHES = {
    "vit_tiny_patch16_224": {"patch_size": 4, **SMALL},
    "deit_tiny_distilled_patch16_224": {"patch_size": 4, **SMALL},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)},
    "swin_tiny_patch4_window7_224": {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2},
}


def build(name: str, image_size: int) -> torch.nn.Module:
    model = ModelConfig(name=name, kwargs=PATCHES.get(name, {}))
    return create_model(model, num_classes=4, image_size=image_size, channels=3)


@pytest.mark.parametrize("name", PATCHES)
@pytest.mark.parametrize(("size", "rest", "sizes"), [(18, 2, "16 or 20"), (17, 1, "16 or 20"), (31, 3, "28 or 32")])
def test_a_rest_is_refused_with_the_numbers(name: str, size: int, rest: int, sizes: str) -> None:
    message = f"{name}: {size} px are not a multiple of its patches of 4 px, so a border of {rest} px .* be {sizes}$"
    with pytest.raises(ConfigError, match=message):
        build(name, size)


@pytest.mark.parametrize("name", [*PATCHES, "resnet8_tiny", "rednet26", "resnet10t"])
@pytest.mark.parametrize("size", [16, 32])
def test_multiples_are_taken(name: str, size: int) -> None:
    build(name, size)


@pytest.mark.parametrize("size", [17, 18, 30])
def test_convolutions_that_overlap_lose_nothing(size: int) -> None:
    build("resnet8_tiny", size)
    build("cvt_13", size)


def test_padding_is_no_loss() -> None:
    model = ModelConfig(name="vit_tiny_patch16_224", kwargs={"patch_size": 4, "dynamic_img_pad": True, **SMALL})
    create_model(model, num_classes=4, image_size=18, channels=3)


@pytest.mark.parametrize(("patch", "size"), [(16, 222), (16, 225), (14, 224 + 2), (32, 16)])
def test_large_images(patch: int, size: int) -> None:
    model = ModelConfig(name="vit_tiny_patch16_224", kwargs={"patch_size": patch, **SMALL})
    with pytest.raises(ConfigError, match=f"{size} px are not a multiple of its patches of {patch} px"):
        create_model(model, num_classes=4, image_size=size, channels=3)


def test_teachers_are_asked_too(tmp_path: Path) -> None:
    run(tmp_path / "run", "train.epochs=1")
    ten = tuple("0123456789")
    info = DataInfo("d", ten, 16, 3, (0.5,) * 3, (0.2,) * 3, num_train=10, num_eval=10, fingerprint="f")
    with pytest.raises(ConfigError, match="18 px are not a multiple of its patches of 8 px"):
        load_teacher(TeacherConfig(weights=str(tmp_path / "run"), image_size=18), info)
    load_teacher(TeacherConfig(weights=str(tmp_path / "run")), info)
