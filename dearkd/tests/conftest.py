"""One small teacher for all tests, and runs with it that take a second and are recorded update by update."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.records import made_up_card
from dearkd.cli import PAPER
from dearkd.config import DearKDConfig
from dearkd.generation.teacher import open_teacher
from dearkd.method import DearKD
from dearkd.tests.generation_samples import micro
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill import FrozenTeacher
from vitutor_core.jobs.teacher import with_teachers
from vitutor_core.models.weights import create_model, save_model
from vitutor_core.train import optim
from vitutor_core.train.method import Clock
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

TEACHER = ("train.epochs=2", "data.fraction=0.25", "runtime.eval_every_epochs=2")
MICRO = (
    "data.fraction=0.25",
    "student.kwargs.embed_dim=32",
    "student.kwargs.drop_path_rate=0.1",
    "optim.lr=3e-3",
    "optim.warmup_epochs=1",
    "train.epochs=3",
    "train.batch_size=64",
    "train.epoch_length=subset",
    "train.ema_decay=0.9",
    "runtime.device=cpu",
    "runtime.threads=1",
    "runtime.eval_every_epochs=3",
    "runtime.checkpoint_every_epochs=1",
)


@dataclass
class Update:
    """One update of a run. ``moments`` are ``optim.optimizer_tensors``; weights and gradients go by parameter name."""

    step: int
    teacher_calls: int
    lr: float
    loss: Tensor
    weights_before: dict[str, Tensor]
    moments_before: dict[str, Tensor]
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    gradients: dict[str, Tensor]
    optimised: set[str]


@dataclass
class Run:
    """A finished run: its folder, the content of its metrics.json, and its updates."""

    path: Path
    result: dict[str, Any] = field(default_factory=dict)
    updates: list[Update] = field(default_factory=list)


@pytest.fixture(scope="session")
def dearkd_teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the CNN of the digits recipe, trained for two short epochs."""
    folder = tmp_path_factory.mktemp("dearkd_teachers")
    with_teachers(PAPER.resolve("digits", None, None, MICRO), "digits", folder, settings=TEACHER)
    return folder


@pytest.fixture(scope="session")
def dearkd_config(dearkd_teachers: Path) -> Callable[..., DearKDConfig]:
    """Configs of digits runs of 3 epochs of 3 updates, two epochs in stage I, from the recipe or one of its rows."""

    def config(*settings: str, row: str | None = None) -> DearKDConfig:
        student = PAPER.resolve("digits", None, row, (*MICRO, *settings))
        return with_teachers(student, "digits", dearkd_teachers, settings=TEACHER)

    return config


@pytest.fixture(scope="session")
def dearkd_train() -> Callable[..., Run]:
    """Train a config into a folder and record it; SIGTERM arrives in the update that ends at step ``stop_at``."""

    def recorded(config: DearKDConfig, out: Path, *, stop_at: int | None = None, run: Run | None = None) -> Run:
        run = Run(out) if run is None else run
        update, call, calls = Updater.update, FrozenTeacher.__call__, 0

        def counting(teacher: FrozenTeacher, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return call(teacher, *args, **kwargs)

        def recording(updater: Updater, micro_batches: tuple[Batch, ...], clock: Clock) -> None:
            method, optimizer = updater.method, updater.state.optimizer
            before = _copy(dict(method.student.state_dict())), _copy(optim.optimizer_tensors(optimizer, method))
            calls_before = calls
            update(updater, micro_batches, clock)
            names = {id(parameter): name for name, parameter in method.named_parameters()}
            optimised = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            assert {id(parameter) for parameter in optimizer.state} <= {id(parameter) for parameter in optimised}
            run.updates.append(
                Update(
                    clock.step,
                    calls - calls_before,
                    optimizer.param_groups[0]["lr"],
                    updater.meter.recent[-1],
                    *before,
                    _copy(dict(method.student.state_dict())),
                    _copy(optim.optimizer_tensors(optimizer, method)),
                    _copy({n: p.grad for n, p in method.named_parameters() if p.grad is not None}),
                    {names[id(parameter)] for parameter in optimised},
                )
            )
            if clock.step + 1 == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FrozenTeacher, "__call__", counting)
            patch.setattr(Updater, "update", recording)
            record = train(config, DearKD.build, label=RunLabel("dearkd", "test", "digits", "test"), out=out)
            run.result = record.model_dump(mode="json")
        return run

    return recorded


def _copy(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.clone(value.detach()) for name, value in tensors.items()}


@pytest.fixture(scope="session")
def teacher(dearkd_teachers: Path) -> Path:
    """The run of the small teacher, which is inverted."""
    return dearkd_teachers / "cnn"


@pytest.fixture(scope="session")
def opened(teacher: Path) -> tuple[nn.Module, DataInfo]:
    """The small teacher, frozen, and what it knows of its data."""
    frozen, info = open_teacher(micro(teacher), torch.device("cpu"))
    return frozen.model, info


@pytest.fixture(scope="session")
def finished_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a student of the digits recipe, untrained."""
    folder = tmp_path_factory.mktemp("student")
    config = PAPER.resolve("digits", None, "mhca", ()).student
    torch.manual_seed(0)
    model = create_model(config, num_classes=10, image_size=16, channels=3)
    card = made_up_card(
        name=config.name,
        kwargs={**config.kwargs, "in_chans": 3, "img_size": 16},
        class_names=tuple(map(str, range(10))),
        mean=(0.3044,) * 3,
        std=(0.3755,) * 3,
    )
    save_model(folder / "student.safetensors", model, card)
    return folder
