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
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from safetensors.torch import load_file

from conformance import ranks
from conformance.cost import cpu_seconds
from vitutor_core.cli.compared import Contest
from vitutor_core.cli.teacher import with_teachers
from vitutor_core.config import setting
from vitutor_core.data.build import build_data
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Batch
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.graph.needs import teachers_of
from vitutor_core.graph.stages import read_graph
from vitutor_core.lines import read_lines
from vitutor_core.models.weights import create_model
from vitutor_core.paper import load
from vitutor_core.recipe import SHIFTED_SETS, read_recipe, recipe_path, scales_of
from vitutor_core.report.paper import load_paper_results, split_row
from vitutor_core.runs import RunRecord
from vitutor_core.schema import ModelConfig, RunConfig
from vitutor_core.train.checkpoint import latest
from vitutor_core.train.evaluation import evaluate_run
from vitutor_core.train.method import Clock
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.update import Updater

SHORT = ("train.epochs=2",)
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


class MethodConformance:
    package: ClassVar[str]
    micro: ClassVar[tuple[str, ...]]
    row: ClassVar[str | None] = None
    classifies: ClassVar[bool] = True
    """False where the row pre-trains an encoder, which has figures of its own instead of an accuracy."""
    sees_other_processes: ClassVar[bool] = False
    """True where the objective of a process sees the images of others, as contrastive ones do."""
    beside_the_tables: ClassVar[frozenset[str]] = frozenset()
    """Rows for which the paper has no number, and which nothing else needs."""

    @classmethod
    def paper(cls) -> Any:
        return importlib.import_module(f"{cls.package}.cli").PAPER

    @classmethod
    def scales(cls) -> tuple[str, ...]:
        return scales_of(cls.package)

    @classmethod
    def config(cls, *settings: str) -> RunConfig:
        config: RunConfig = cls.paper().resolve("digits", None, cls.row, (*cls.micro, *settings))
        return config

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", f"from {self.package}.cli import main; main()", *arguments]

    def train_command(self, out: Path, teachers: Path, *settings: str) -> list[str]:
        named = [(path, teacher.recipe) for path, teacher in teachers_of(self.config()) if teacher.recipe is not None]
        given = [setting(f"{path}.weights", str(teachers / recipe)) for path, recipe in named]
        options = [option for setting in (*self.micro, *settings, *given) for option in ("--set", setting)]
        row = [] if self.row is None else ["--row", self.row]
        return self.command("train", *row, *options, "--out", str(out))

    @classmethod
    def run(cls, out: Path, teachers: Path, *settings: str) -> dict[str, Any]:
        module, _, name = cls.paper().method.partition(":")
        build = getattr(importlib.import_module(module), name).build
        config = with_teachers(cls.config(*settings), "digits", teachers, settings=SHORT)
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
        python, option, code, *arguments = command
        kill = KILLED.format(step=json.loads((finished / "metrics.json").read_text())["updates"] // 2)
        killed = subprocess.run(
            [python, option, kill + code, *arguments], start_new_session=True, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert list((tmp_path / "run" / "checkpoints").iterdir())
        assert not (tmp_path / "run" / "metrics.json").exists()
        subprocess.run(command, check=True, capture_output=True)
        assert_equal_weights(finished, tmp_path / "run")

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_sigterm_saves_and_exits_143(self, tmp_path: Path, teachers: Path, finished: Path, workers: int) -> None:
        loader = "resident" if workers == 0 else "streamed"
        settings = (f"data.loader={loader}", f"runtime.workers={workers}", "train.epochs=1000")
        command = self.train_command(tmp_path / "run", teachers, *settings)
        with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
            wait_for(tmp_path / "run" / "checkpoints", process)
            os.killpg(process.pid, signal.SIGTERM)
            _, errors = process.communicate(timeout=300)
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

    def test_every_row_of_every_scale_is_valid_and_no_two_are_the_same(self) -> None:
        for scale in self.scales():
            recipe = read_recipe(recipe_path(self.package, scale))
            for preset in (None, *recipe.presets):
                configs = [self.paper().resolve(scale, None, row, (), preset=preset) for row in recipe.rows]
                if preset is None:
                    # Where generated images lie is no setting; which they are is.
                    assert len({(config.fingerprint(), config.data.train_from) for config in configs}) == len(configs)

    def test_every_student_can_be_built(self) -> None:
        """Also those of the scales that no test trains; the weights that they start from are left out."""
        load(self.paper().method)  # registers the paper's models with timm
        found = set()
        for scale in self.scales():
            for row in read_recipe(recipe_path(self.package, scale)).rows:
                config = self.paper().resolve(scale, None, row, ())
                student = config.student.changed(["pretrained=false", "start_row=null"])
                found.add((student.model_dump_json(), config.data.image_size))
        for student, image_size in found:
            with torch.device("meta"):
                create_model(
                    ModelConfig.model_validate_json(student), num_classes=10, image_size=image_size, channels=3
                )

    @property
    def compared(self) -> set[str]:
        """Rows of `vitutor compare`."""
        return {line.row for line in read_lines(self.package).values() if line.row is not None}

    def test_every_row_of_the_tables_can_be_made_and_every_row_is_for_something(self) -> None:
        paper = self.paper()
        graphs = [read_graph(scale, papers={self.package: paper}).papers[self.package] for scale in self.scales()]
        rows, needed = {row for graph in graphs for row in graph.configs}, self.compared
        for graph in graphs:
            needed |= {row for needs in graph.needs.values() for row in needs.rows}
            needed |= {row for stage in graph.stages for row in stage.rows}
        outs = [out for graph in graphs for stage in graph.stages for out in stage.outs]
        measured = {out.rpartition("/")[2] for out in outs if out.startswith("evaluation/")}
        printed = load_paper_results(Path(str(files(self.package))) / "paper_results.yaml")
        named = {split_row(row)[0] for table in printed.tables for row in table.reproduced()}
        assert named <= rows | measured
        assert rows - named - needed == self.beside_the_tables

    def test_what_tables_print_of_other_images_is_measured(self) -> None:
        printed = load_paper_results(Path(str(files(self.package))) / "paper_results.yaml")
        cells = {split_row(name) for table in printed.tables for name in table.reproduced()}
        wanted = {(row, (metric or "").rpartition("_")[2]) for row, metric in cells}
        shifts = [read_recipe(recipe_path(self.package, scale)).robustness for scale in self.scales()]
        measured = {(row, name) for found in shifts for row in found.rows for name in found.sets}
        assert {cell for cell in wanted if cell[1] in SHIFTED_SETS} <= measured
        assert {row for row, _ in measured} <= {row for row, _ in cells}

    def test_compare_finds_its_rows(self) -> None:
        (entry,) = entry_points(group="vitutor.papers", name=self.package)
        assert entry.load() == self.paper()
        for scale in self.scales():
            contest = Contest(scale, {self.package: self.paper()})
            for name in read_lines(self.package):
                entry = contest.entry(name)
                config = entry.row.config(0)
                same = (config.student.name, config.student.kwargs) == (
                    contest.budget.student.name,
                    contest.budget.student.kwargs,
                )
                assert same == entry.is_common, (scale, name)
                assert config.cache.folder is None  # a line's minutes are its own
                assert (config.optim, config.train) == (contest.budget.optim, contest.budget.train)
                for row, _ in contest.before(entry.row):
                    assert row.config(0).data == contest.budget.data

    def test_another_config_is_refused_with_the_difference(self, finished: Path, teachers: Path) -> None:
        with pytest.raises(ConfigError, match=r"optim\.lr"):
            self.run(finished, teachers, "optim.lr=0.5")

    def test_a_checkpoint_of_another_method_is_refused(self, finished: Path, teachers: Path, tmp_path: Path) -> None:
        shutil.copytree(finished / "checkpoints", tmp_path / "run" / "checkpoints")
        record = json.loads((finished / "run.json").read_text())
        record["identity"]["method"] = "another"
        (tmp_path / "run" / "run.json").write_text(json.dumps(record))
        with pytest.raises(CheckpointError, match=f"method another, expected {self.package}"):
            self.run(tmp_path / "run", teachers)

    def test_runtime_fields_may_change(self, finished: Path, teachers: Path) -> None:
        self.run(finished, teachers, "runtime.workers=1", "runtime.log_every_steps=3")

    @pytest.mark.slow
    def test_two_processes_share_one_gradient_and_every_parameter_has_one(self, tmp_path: Path, teachers: Path) -> None:
        config = with_teachers(self.config("train.accumulate=2"), "digits", teachers)
        found = ranks.gradients(self.paper().method, config, tmp_path)
        first, second = found.own
        assert first.pop("") != second.pop("")  # each has its own images
        assert [name for name in first if not torch.equal(first[name], second[name])] == []
        assert [name for name, gradient in first.items() if not gradient.any()] == []
        if not self.sees_other_processes:
            for name, gradient in found.alone.items():  # an average, not a sum
                torch.testing.assert_close(found.same[0][name], gradient, rtol=1e-4, atol=1e-7, msg=name)

    def test_the_method_is_what_it_says_and_reports_leave_it_alone(self, teachers: Path) -> None:
        config = with_teachers(self.config(), "digits", teachers)
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
        from vitutor_core.cli.artefacts import Targets, export_run
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
            result = self.run(tmp_path / name, teachers, f"cache.folder={tmp_path / 'logits'}")
            assert_equal_weights(tmp_path / name, finished)
        stored = result["stored_logits"]
        assert stored is None or (stored["epochs_written"], stored["epochs_computed"]) == (0, 0)

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
        done = subprocess.run(self.command("evaluate", str(finished)), capture_output=True, text=True, check=True)
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


def wait_for(path: Path, process: subprocess.Popen[Any], *, seconds: float = 300) -> None:
    """Wait until ``path`` is there and, if a folder, not empty."""
    deadline = time.monotonic() + seconds
    while not path.exists() or (path.is_dir() and not [p for p in path.iterdir() if ".tmp" not in p.name]):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)
