"""What every paper package must pass, whatever its method.

A package's tests subclass `MethodConformance`, name the package and give settings that make a run last seconds:

    class TestDearKD(MethodConformance):
        package = "dearkd"
        micro = (*SHORT_EPOCHS, "train.epochs=3", ...)
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import load_file

from conformance import forked, ranks, steps
from conformance.cost import cpu_seconds
from conformance.recipes import RecipeConformance
from vitutor_core.bench.driven import Driven
from vitutor_core.config import setting
from vitutor_core.data.build import build_data
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Batch
from vitutor_core.distributed import Processes
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.graph.needs import teachers_of
from vitutor_core.jobs.teacher import with_teachers
from vitutor_core.paper import load
from vitutor_core.runs import RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train.checkpoint import latest
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.method import Clock, StepOutput
from vitutor_core.train.origin import Origin
from vitutor_core.train.replay import replay
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

SHORT_EPOCHS = ("data.fraction=0.3", "train.epoch_length=subset", "train.batch_size=80")
"""Three updates in an epoch of the digits."""
SHORT = ("train.epochs=2", *SHORT_EPOCHS)
"""How teachers are trained here."""
LOADERS = {
    "resident": ("data.loader=resident",),
    "streamed, in process": ("data.loader=streamed", "runtime.workers=0"),
    "streamed, 2 workers": ("data.loader=streamed", "runtime.workers=2"),
}


KILLED = """
import os, signal
from vitutor_core.train.update import Updater
update = Updater.update
def killed(updater, micro_batches, clock):
    if clock.step == {step}:
        os.killpg(0, signal.SIGKILL)
    update(updater, micro_batches, clock)
Updater.update = killed
"""


class Crash(BaseException):
    """Stands for a process that is killed between two steps."""


class MethodConformance(RecipeConformance):
    micro: ClassVar[tuple[str, ...]]
    row: ClassVar[str | None] = None
    classifies: ClassVar[bool] = True
    """False where the row pre-trains an encoder, which has figures of its own instead of an accuracy."""
    sees_other_processes: ClassVar[bool] = False
    """True where the objective of a process sees the images of others, as contrastive ones do."""
    to_compile: ClassVar[tuple[str, ...]] = ()
    """What has to be set for train.compile."""

    @classmethod
    def config(cls, *settings: str) -> RunConfig:
        config: RunConfig = cls.paper().resolve("digits", None, cls.row, (*cls.micro, *settings))
        return config

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", self.code, *arguments]

    @property
    def code(self) -> str:
        return f"from {self.package}.cli import main; main()"

    def train_arguments(self, out: Path, teachers: Path, *settings: str) -> list[str]:
        named = [(path, teacher.recipe) for path, teacher in teachers_of(self.config()) if teacher.recipe is not None]
        given = [setting(f"{path}.weights", str(teachers / recipe)) for path, recipe in named]
        options = [option for setting in (*self.micro, *settings, *given) for option in ("--set", setting)]
        row = [] if self.row is None else ["--row", self.row]
        return ["train", *row, *options, "--out", str(out)]

    @classmethod
    def run(cls, out: Path, teachers: Path, *settings: str) -> dict[str, Any]:
        module, _, name = cls.paper().method.partition(":")
        build = getattr(importlib.import_module(module), name).build
        # A teacher is read as its student is: by another loader, it would be trained again.
        config = with_teachers(cls.config(), "digits", teachers, settings=SHORT).changed(settings)
        record = train(config, build, label=RunLabel(cls.package, "test", "digits", "test"), out=out)
        return record.model_dump(mode="json")

    @pytest.fixture(scope="class")
    @classmethod
    def teachers(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("teachers")
        with_teachers(cls.config(), "digits", folder, settings=SHORT)
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
        assert self.run(finished, teachers) == RunRecord.read(finished).model_dump(mode="json")

    @pytest.mark.parametrize("loader", LOADERS)
    def test_resume_is_bit_exact(
        self, tmp_path: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, loader: str
    ) -> None:
        """And what it ends as does not depend on the loader: it is compared with the run that was left alone."""
        whole = RunRecord.read(finished)
        crashes = {whole.updates * share // 8 for share in (1, 4, 7)}
        update = Updater.update

        def crashing(updater: Updater, micro_batches: tuple[Batch, ...], clock: Clock) -> None:
            if clock.step in crashes:
                crashes.remove(clock.step)
                raise Crash
            update(updater, micro_batches, clock)

        monkeypatch.setattr(Updater, "update", crashing)
        while crashes:
            with pytest.raises(Crash):
                self.run(tmp_path / "broken", teachers, *LOADERS[loader])
        again = self.run(tmp_path / "broken", teachers, *LOADERS[loader])
        assert_equal_weights(finished, tmp_path / "broken")
        assert again["metrics"] == whole.metrics

    def test_a_step_is_replayed_bit_for_bit(
        self, tmp_path: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
    ) -> None:
        """Of a finished run and of a killed one, with a checkpoint before the step and without."""
        updates = RunRecord.read(finished).updates
        differentiate, trained = Updater.differentiate, dict[int, list[torch.Tensor]]()

        def watched(updater: Updater, micro_batches: tuple[Batch, ...], clock: Clock) -> list[StepOutput]:
            if clock.step == updates * 3 // 4:
                raise Crash
            outputs = differentiate(updater, micro_batches, clock)
            trained[clock.step] = [value for output in outputs for value in (output.loss, *output.parts.values())]
            return outputs

        with monkeypatch.context() as patch:
            patch.setattr(Updater, "differentiate", watched)
            with pytest.raises(Crash):
                self.run(tmp_path / "killed", teachers)
        for run, step in ((tmp_path / "killed", updates * 3 // 4 - 1), (finished, updates // 2), (finished, 1)):
            origin = Origin.read(run)
            config = load(self.paper().config).from_mapping(origin.config, where="run")
            seen = replay(origin, config, load(self.paper().method).build, step, whole_epoch=run == finished)
            assert (seen.step, seen.not_finite) == (step, [])
            assert list(seen.terms.values()) == [float(value) for value in trained[step]]
            compared = seen.repeated.keys() & seen.recorded.keys() - {"images_per_s", "data_wait"}
            assert {name: seen.repeated[name] for name in compared} == {name: seen.recorded[name] for name in compared}
            assert "train_loss" in compared or run != finished
        with pytest.raises(ConfigError, match=r"optim\.lr"):
            replay(origin, config.changed(["optim.lr=0.5"]), load(self.paper().method).build, 1)

    @pytest.mark.slow
    def test_kill_9_then_the_same_command(self, tmp_path: Path, teachers: Path, finished: Path) -> None:
        arguments = self.train_arguments(tmp_path / "run", teachers)
        kill = KILLED.format(step=json.loads((finished / "metrics.json").read_text())["updates"] // 2)
        killed = forked.run(kill + self.code, *arguments)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert list((tmp_path / "run" / "checkpoints").iterdir())
        assert not (tmp_path / "run" / "metrics.json").exists()
        forked.run(self.code, *arguments, check=True)
        assert_equal_weights(finished, tmp_path / "run")

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_sigterm_saves_and_exits_143(self, tmp_path: Path, teachers: Path, finished: Path, workers: int) -> None:
        loader = "resident" if workers == 0 else "streamed"
        settings = (f"data.loader={loader}", f"runtime.workers={workers}", "train.epochs=1000")
        with forked.Forked(self.code, *self.train_arguments(tmp_path / "run", teachers, *settings)) as process:
            wait_for(tmp_path / "run" / "checkpoints", process)
            os.killpg(process.pid, signal.SIGTERM)
            _, errors = process.communicate()
        assert process.returncode == 143, errors
        assert "Traceback" not in errors
        (stopped,) = re.findall(r"error: stopped (at step|after epoch) (\d+); run it again", errors)
        result = json.loads((finished / "metrics.json").read_text())
        per_epoch = result["updates"] // result["epochs"]
        step = int(stopped[1]) if stopped[0] == "at step" else (int(stopped[1]) + 1) * per_epoch
        assert latest(tmp_path / "run" / "checkpoints").step == step
        assert not list((tmp_path / "run").rglob("*.tmp*"))

    def test_config_round_trip(self) -> None:
        config = self.config()
        assert type(config).from_mapping(config.model_dump(mode="json"), where="x") == config

    def test_another_config_is_refused_with_the_difference(self, finished: Path, teachers: Path) -> None:
        with pytest.raises(ConfigError, match=r"optim\.lr"):
            self.run(finished, teachers, "optim.lr=0.5")

    def test_a_checkpoint_of_another_method_is_refused(self, finished: Path, teachers: Path, tmp_path: Path) -> None:
        shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
        record = json.loads((finished / "run.json").read_text())
        record["identity"]["method"] = "another"
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=f"a run of another, not of {self.package}"):
            self.run(tmp_path / "run", teachers)

    def test_runtime_fields_may_change(self, finished: Path, teachers: Path) -> None:
        self.run(finished, teachers, "runtime.workers=1", "runtime.log_every_steps=3")

    def few_steps(self, teachers: Path, *settings: str) -> Any:
        few = ("train.batch_size=32", "data.fraction=0.25", "train.epoch_length=subset", "train.precision=fp32")
        settings = (*few, *settings)
        return with_teachers(self.config(*settings), "digits", teachers, settings=SHORT)

    def driven(self, config: RunConfig) -> Driven:
        data = build_data(config, device=torch.device("cpu"))
        return Driven(config, load(self.paper().method).build, data, Processes(0, 1, torch.device("cpu")))

    def test_forward_is_one_graph_captured_at_most_twice(self, teachers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def losses(*settings: str) -> list[float]:
            driven = self.driven(self.few_steps(teachers, *self.to_compile, *settings))
            return [float(loss) for epoch in range(2) for loss in driven.epoch(epoch)]

        with steps.captured_whole(monkeypatch) as graphs:
            compiled = losses("train.compile=true")
        assert len(compiled) > 10
        assert 1 <= graphs.count <= 2
        assert compiled == losses()

    def test_no_step_reads_from_the_device(self, teachers: Path) -> None:
        driven = self.driven(self.few_steps(teachers))
        driven.updater.guard.deferred = True  # as on a GPU: its flag is read by the loop, between steps
        with steps.NoHostReads():
            count = sum(1 for epoch in range(4) for _ in driven.epoch(epoch))
        assert count >= 20

    def test_no_step_on_another_device_makes_a_tensor_on_the_host(self, teachers: Path, tmp_path: Path) -> None:
        config = self.few_steps(teachers)
        steps.drive_on_meta(self.driven(config), config)

    @pytest.mark.slow
    def test_two_processes_share_one_gradient_and_every_parameter_has_one(self, tmp_path: Path, teachers: Path) -> None:
        config = with_teachers(self.config("train.accumulate=2"), "digits", teachers, settings=SHORT)
        found = ranks.gradients(self.paper().method, config, tmp_path)
        first, second = found.own
        assert first.pop("") != second.pop("")  # each has its own images
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        assert [name for name, gradient in first.items() if not gradient.any()] == []
        if not self.sees_other_processes:
            for name, gradient in found.alone.items():  # an average, not a sum
                torch.testing.assert_close(found.same[0][name], gradient, rtol=1e-4, atol=1e-7, msg=name)

    def test_the_method_is_what_it_says_and_reports_leave_it_alone(self, teachers: Path) -> None:
        config = with_teachers(self.config(), "digits", teachers, settings=SHORT)
        data = build_data(config, device=torch.device("cpu"))
        method = load(self.paper().method).build(config, data.info).train()
        few = next(iter(data.evaluation))
        data.train.close()
        modes = [module.training for module in method.modules()]
        assert bool(method.report(evaluation=[few]).metrics) == method.traits.measures
        assert method.traits.classifies == self.classifies
        assert method.report().events == method.report(probe=few[0][:8]).events
        assert [module.training for module in method.modules()] == modes

    def test_export_loads_into_timm(self, finished: Path, tmp_path: Path) -> None:
        from vitutor_core.jobs.export import Targets, export_run
        from vitutor_core.models.weights import read_card

        export_run(finished, Targets(tmp_path / "student.safetensors"), self.package)
        card = read_card(tmp_path / "student.safetensors")
        kwargs: dict[str, Any] = {"num_classes": 10, **card.kwargs}
        model = timm.create_model(card.name, checkpoint_path=str(tmp_path / "student.safetensors"), **kwargs)
        assert model.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 10)
        assert "timm.create_model" in (tmp_path / "student.md").read_text()
        export_run(finished, Targets(tmp_path / "student", torch_export=tmp_path / "student.pt2"), self.package)
        rebuilt = timm.create_model(f"local-dir:{tmp_path / 'student'}", pretrained=True)
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(rebuilt.eval()(images), model(images))

    def test_stored_logits_teach_as_the_teacher_does(self, tmp_path: Path, teachers: Path, finished: Path) -> None:
        for name in ("storing", "reading"):
            stored = self.run(tmp_path / name, teachers, f"cache.folder={tmp_path / 'logits'}")["stored_logits"]
            assert_equal_weights(tmp_path / name, finished)
            if stored is None:
                assert not (tmp_path / "logits").exists()  # so that there is nothing to read
                return
        assert (stored["epochs_written"], stored["epochs_computed"]) == (0, 0)

    def test_what_is_measured_again_is_what_was_measured(self, finished: Path) -> None:
        record = RunRecord.read(finished, self.package)
        found, right, _ = evaluate_run(finished, record, load(self.paper().config), load(self.paper().method).build)
        assert right == record.correct
        assert ("top1" in right) == self.classifies
        again = {name: value for name, value in record.metrics.items() if name in found}
        assert {name: found[name] for name in again} == again
        assert ("top1" if self.classifies else "knn_top1") in again
        # What is missing is what the method showed of a few images after each epoch.
        shown = (finished / "curves.csv").read_text().splitlines()[0].split(",")
        assert record.metrics.keys() - again.keys() <= set(shown)

    @pytest.mark.slow
    def test_evaluate_in_a_fresh_process_finds_the_model(self, finished: Path) -> None:
        done = forked.run(self.code, "evaluate", finished, check=True)
        found, trained = json.loads(done.stdout), json.loads((finished / "metrics.json").read_text())["metrics"]
        assert found.get("top1") == trained.get("top1")
        assert found["parameters"] > 0

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


def wait_for(path: Path, process: forked.Forked, *, seconds: float = 300) -> None:
    """Wait until ``path`` is there and, if a folder, not empty."""
    deadline = time.monotonic() + seconds
    while not path.exists() or (path.is_dir() and not [p for p in path.iterdir() if ".tmp" not in p.name]):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
