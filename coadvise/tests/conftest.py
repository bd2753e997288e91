"""Facts about small data, random teachers, and methods with them, in milliseconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch

import vitutor_core.models  # noqa: F401  # registers the teachers with timm
from coadvise.config import CoadviseConfig
from coadvise.method import Coadvise
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill import FrozenTeacher
from vitutor_core.models.weights import create_model

INFO = DataInfo("toy", tuple("abcde"), 16, 3, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 8, 8, "")
BASE = {
    "data": {"image_size": 16},
    "student": {
        "name": "cit_tiny_patch16_224",
        "kwargs": {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "weight_init": "moco"},
    },
    "teachers": {"cnn": {"recipe": "cnn"}, "inn": {"recipe": "inn"}},
    "optim": {"lr": 1e-3},
    "train": {"epochs": 1, "batch_size": 8},
}
MODELS = {"cnn": "resnet8_tiny", "inn": "rednet_tiny"}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # maps this small gain nothing from more
    yield
    torch.set_num_threads(before)


@pytest.fixture
def info() -> DataInfo:
    return INFO


@pytest.fixture
def values() -> dict[str, Any]:
    """The values of `config`, to be changed before they are validated."""
    return copy.deepcopy(BASE)


@pytest.fixture
def config() -> Callable[..., CoadviseConfig]:
    return lambda *settings: CoadviseConfig.from_mapping(BASE, where="test").changed(settings)


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(8, 3, 16, 16), torch.softmax(torch.randn(8, 5), 1), torch.arange(8))


@pytest.fixture
def teacher() -> Callable[..., FrozenTeacher]:
    def random_teacher(role: str, mean: float = 0.5) -> FrozenTeacher:
        torch.manual_seed(len(role))
        model = timm.create_model(MODELS.get(role, "resnet8_tiny"), num_classes=5)
        with torch.no_grad():  # blocks start as their shortcuts, and predictions nearly flat
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return FrozenTeacher(model, name=role, mean=(mean,) * 3, std=INFO.std, image_size=16, info=INFO)

    return random_teacher


@pytest.fixture
def build(config, teacher) -> Callable[..., Coadvise]:
    """Make a method in training mode from settings, with random teachers."""

    def from_settings(*settings: str) -> Coadvise:
        run = config(*settings)
        torch.manual_seed(0)
        student = create_model(run.student, num_classes=5, image_size=16, channels=3)
        return Coadvise(student, run.method, {role: teacher(role) for role in run.method.order}, INFO).train()

    return from_settings
