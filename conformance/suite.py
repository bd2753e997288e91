"""What every paper package must pass, whatever its method.

A package's tests subclass `MethodConformance`, name the package and give settings that make a run last seconds:

    class TestDearKD(MethodConformance):
        package = "dearkd"
        micro = ("train.epochs=3", ...)
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import load_file

from conformance import ranks
from conformance.cost import cpu_seconds
from vitutor_core.cli.teacher import with_teachers
from vitutor_core.data.sources import open_source
from vitutor_core.data.types import Batch
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.paper import load
from vitutor_core.recipe import read_recipe, recipe_path, scales_of
from vitutor_core.schema import RunConfig
from vitutor_core.train.evaluation import evaluate_run, read_record
from vitutor_core.train.method import Clock
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

LOADERS = {
    "resident": ("data.loader=resident",),
    "streamed, in process": ("data.loader=streamed", "runtime.workers=0"),
    "streamed, 2 workers": ("data.loader=streamed", "runtime.workers=2"),
}


class Crash(BaseException):
    """Stands for a process that is killed between two steps."""


class MethodConformance:
    package: ClassVar[str]
    micro: ClassVar[tuple[str, ...]]
    row: ClassVar[str | None] = None
    classifies: ClassVar[bool] = True
    """False where the row pre-trains an encoder, which has figures of its own instead of an accuracy."""

    @classmethod
    def paper(cls) -> Any:
        return importlib.import_module(f"{cls.package}.cli").PAPER

    @classmethod
    def config(cls, *settings: str) -> RunConfig:
        config: RunConfig = cls.paper().resolve("digits", None, cls.row, (*cls.micro, *settings))
        return config

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", f"from {self.package}.cli import main; main()", *arguments]

    def train_command(self, out: Path, teachers: Path, *settings: str) -> list[str]:
        options = [option for setting in (*self.micro, *settings) for option in ("--set", setting)]
        row = [] if self.row is None else ["--row", self.row]
        return self.command("train", *row, *options, "--teachers", str(teachers), "--out", str(out))

    @classmethod
    def run(cls, out: Path, teachers: Path, *settings: str) -> dict[str, Any]:
        module, _, name = cls.paper().method.partition(":")
        build = getattr(importlib.import_module(module), name).build
        config = with_teachers(cls.config(*settings), "digits", teachers)
        return train(config, build, label=RunLabel(cls.package, "test", "digits", "test"), out=out)

    @pytest.fixture(scope="class")
    @classmethod
    def teachers(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("teachers")
        with_teachers(cls.config(), "digits", folder, settings=("train.epochs=2",))
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def finished(cls, tmp_path_factory: pytest.TempPathFactory, teachers: Path) -> Path:
        out = tmp_path_factory.mktemp("finished") / "run"
        cls.run(out, teachers)
        return out

    def test_smoke_train(self, finished: Path) -> None:
        result = json.loads((finished / "metrics.json").read_text())
        assert result["paper"] == self.package
        assert ("top1" in result["metrics"]) == self.classifies
        assert 0 <= result["metrics"].get("top1", 0) <= 100
        assert result["metrics"]["images"] == len(open_source(self.config().data).evaluation.labels)
        assert result["versions"]["torch"] == torch.__version__.partition("+")[0]
        assert len((finished / "curves.csv").read_text().splitlines()) == 1 + self.config().train.epochs
        assert not list(finished.rglob("*.tmp*"))

    def test_a_finished_run_is_not_trained_again(
        self, finished: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Updater, "update", lambda *_: pytest.fail("trained again"))
        assert self.run(finished, teachers) == json.loads((finished / "metrics.json").read_text())

    @pytest.mark.parametrize("loader", LOADERS)
    def test_resume_is_bit_exact(
        self, tmp_path: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch, loader: str
    ) -> None:
        settings = LOADERS[loader]
        whole = self.run(tmp_path / "whole", teachers, *settings)
        crashes = {whole["updates"] * share // 8 for share in (1, 4, 7)}
        update = Updater.update

        def crashing(updater: Updater, micro_batches: tuple[Batch, ...], clock: Clock) -> None:
            if clock.step in crashes:
                crashes.remove(clock.step)
                raise Crash
            update(updater, micro_batches, clock)

        monkeypatch.setattr(Updater, "update", crashing)
        while crashes:
            with pytest.raises(Crash):
                self.run(tmp_path / "broken", teachers, *settings)
        again = self.run(tmp_path / "broken", teachers, *settings)
        assert_equal_weights(tmp_path / "whole", tmp_path / "broken")
        assert again["metrics"] == whole["metrics"]

    @pytest.mark.slow
    def test_kill_9_then_the_same_command(self, tmp_path: Path, teachers: Path, finished: Path) -> None:
        command = self.train_command(tmp_path / "run", teachers)
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) as process:
            wait_for(tmp_path / "run" / "checkpoints", process)
            os.killpg(process.pid, signal.SIGKILL)
        assert not (tmp_path / "run" / "metrics.json").exists()
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        assert_equal_weights(finished, tmp_path / "run")

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_sigterm_saves_once_and_exits_143(self, tmp_path: Path, teachers: Path, workers: int) -> None:
        loader = "resident" if workers == 0 else "streamed"
        settings = (f"data.loader={loader}", f"runtime.workers={workers}", "runtime.checkpoint_every_epochs=1000")
        command = self.train_command(tmp_path / "run", teachers, *settings, "train.epochs=1000")
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
            wait_for(tmp_path / "run" / "run.json", process)
            time.sleep(1.0)
            os.killpg(process.pid, signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 143, errors
        assert "Traceback" not in errors
        assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1

    def test_config_round_trip(self) -> None:
        config = self.config()
        assert type(config).from_mapping(config.model_dump(mode="json"), where="x") == config

    def test_every_row_of_every_scale_is_valid(self) -> None:
        for scale in scales_of(self.package):
            for row in read_recipe(recipe_path(self.package, scale)).rows:
                self.paper().resolve(scale, None, row, ())

    def test_compare_finds_its_rows(self) -> None:
        (entry,) = entry_points(group="vitutor.papers", name=self.package)
        assert entry.load() == self.paper()
        wanted = {self.paper().plain_row, self.paper().method_rows[-1]}
        assert len(wanted) == 2
        for scale in scales_of(self.package):
            assert wanted <= read_recipe(recipe_path(self.package, scale)).rows.keys()

    def test_another_config_is_refused_with_the_difference(self, finished: Path, teachers: Path) -> None:
        with pytest.raises(ConfigError, match=r"optim\.lr"):
            self.run(finished, teachers, "optim.lr=0.5")

    def test_a_checkpoint_of_another_method_is_refused(self, finished: Path, teachers: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        record = json.loads((finished / "run.json").read_text())
        record["identity"]["method"] = "another"
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=f"method another, expected {self.package}"):
            self.run(tmp_path / "run", teachers)

    def test_runtime_fields_may_change(self, finished: Path, teachers: Path) -> None:
        self.run(finished, teachers, "runtime.workers=1", "runtime.log_every_steps=3")

    @pytest.mark.slow
    def test_gradient_gap_is_zero_on_two_processes(self, tmp_path: Path, teachers: Path) -> None:
        config = with_teachers(self.config(), "digits", teachers)
        gap, norm = ranks.gradient_gap(self.paper().method, config, tmp_path)
        assert gap == 0.0
        assert norm > 0.0

    def test_export_loads_into_timm(self, finished: Path, tmp_path: Path) -> None:
        from vitutor_core.cli.artefacts import export_run
        from vitutor_core.models.weights import read_card

        export_run(finished, tmp_path / "student.safetensors", self.package)
        card = read_card(tmp_path / "student.safetensors")
        kwargs: dict[str, Any] = {"num_classes": 10, **card.kwargs}
        model = timm.create_model(card.name, checkpoint_path=str(tmp_path / "student.safetensors"), **kwargs)
        assert model.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
        assert "timm.create_model" in (tmp_path / "student.md").read_text()

    def test_what_is_measured_again_is_what_was_measured(self, finished: Path) -> None:
        record = read_record(finished, self.package)
        found = evaluate_run(finished, record, load(self.paper().config), load(self.paper().method).build)
        assert {name: found[name] for name in record["metrics"] if name in found} == {
            name: value for name, value in record["metrics"].items() if name in found
        }
        assert ("top1" if self.classifies else "knn_top1") in found

    @pytest.mark.slow
    def test_evaluate_in_a_fresh_process_finds_the_model(self, finished: Path) -> None:
        done = subprocess.run(self.command("evaluate", str(finished)), capture_output=True, text=True, check=True)
        expected = json.loads((finished / "metrics.json").read_text())["metrics"].get("top1")
        assert json.loads(done.stdout).get("top1") == (None if expected is None else pytest.approx(expected))
        assert json.loads(done.stdout)["parameters"] > 0

    @pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
    def test_help_takes_under_a_second(self, arguments: list[str]) -> None:
        seconds, done = cpu_seconds(self.command(*arguments))
        assert done.returncode == 0
        assert seconds < 1.0


def assert_equal_weights(one: Path, other: Path) -> None:
    a, b = (load_file(run / "student.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def wait_for(path: Path, process: subprocess.Popen[Any], *, seconds: float = 60) -> None:
    """Wait until ``path`` is there and, if a folder, not empty."""
    deadline = time.monotonic() + seconds
    while not path.exists() or (path.is_dir() and not [p for p in path.iterdir() if ".tmp" not in p.name]):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
