"""A batch of digits, and methods built for it from the rows of the recipe; on one thread, for models this small."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from drloc.cli import PAPER
from drloc.config import DRLocConfig
from drloc.method import DRLocMethod
from vitutor_core.data.build import build_data
from vitutor_core.data.types import Batch, DataInfo

MICRO = ("data.fraction=0.25", "train.batch_size=64", "runtime.device=cpu", "augment.mixup=0.8")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def drloc_config() -> Callable[..., DRLocConfig]:
    def config(*settings: str, row: str | None = None) -> DRLocConfig:
        return PAPER.resolve("digits", None, row, (*MICRO, *settings))

    return config


@pytest.fixture(scope="session")
def digits(drloc_config: Callable[..., DRLocConfig]) -> tuple[DataInfo, Batch]:
    data = build_data(drloc_config(), device=torch.device("cpu"))
    (batch,) = next(iter(data.train.epoch(0)))
    return data.info, batch


@pytest.fixture(scope="session")
def drloc_build(drloc_config: Callable[..., DRLocConfig], digits: tuple[DataInfo, Batch]) -> Callable[..., DRLocMethod]:
    """Build a method from a row and settings; always with the same initial weights."""

    def build(*settings: str, row: str | None = None) -> DRLocMethod:
        torch.manual_seed(0)
        return DRLocMethod.build(drloc_config(*settings, row=row), digits[0]).train()

    return build
