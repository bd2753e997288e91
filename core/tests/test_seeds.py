from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import time

import pytest

from conformance.suite import assert_equal_weights
from core.tests.toy_paper import COMMAND, write_toy_paper
from vitutor_core.cli import options, seeds
from vitutor_core.config import identity
from vitutor_core.errors import ConfigError, InterruptedRun, VitutorError
from vitutor_core.paper import Paper
from vitutor_core.recipe import resolve
from vitutor_core.schema import RunConfig, TeacherConfig
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised

PAPER = Paper("toypaper", config="vitutor_core.schema:RunConfig", method="vitutor_core.train.supervised:Supervised")
LONG = ("train.epochs=4", "train.epoch_length=full", "train.batch_size=10")
UPDATES = 4 * (901 // 10)
FILES = ("curves.csv", "metrics.json", "student.safetensors")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_paper(tmp_path_factory.mktemp("toy"))


def start(toy, row, where, *settings):
    changes = [option for setting in settings for option in ("--set", setting)]
    arguments = [
        "reproduce",
        row,
        "--seeds",
        "0,1",
        "--jobs",
        "2",
        "--work",
        "work",
        "--out",
        f"results/{row}",
        *changes,
    ]
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=where,
        env=os.environ | {"PYTHONPATH": str(toy)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, process):
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_an_interrupted_row_publishes_nothing_and_the_same_command_ends_it(toy, tmp_path):
    runs = tmp_path / "work" / "toypaper" / "digits"
    with start(toy, "plain", tmp_path, *LONG) as process:
        wait_until(lambda: len({path.parts[-3] for path in runs.glob("*/checkpoints/step-????????")}) == 2, process)
        process.send_signal(signal.SIGTERM)  # to the parent alone
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "error: stopped and saved; run it again to go on"
    assert not (tmp_path / "results").exists()

    with start(toy, "plain", tmp_path, *LONG) as process:
        wait_until(
            lambda: any(len(json.loads(p.read_text())["sessions"]) == 2 for p in runs.glob("*/run.json")), process
        )
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.splitlines()[-1] == "plain: 2 seeds in results/plain"
    assert files_below(tmp_path / "results") == [f"plain/seed-{seed}/{name}" for seed in range(2) for name in FILES]
    assert not files_below(tmp_path / "work")

    published = [tmp_path / "results" / "plain" / f"seed-{seed}" for seed in range(2)]
    results = [json.loads((folder / "metrics.json").read_text()) for folder in published]
    assert [(result["seed"], result["updates"]) for result in results] == [(seed, UPDATES) for seed in range(2)]
    assert results[0]["metrics"]["loss"] != results[1]["metrics"]["loss"]
    config = resolve(RunConfig, toy / "toypaper" / "recipes" / "digits.yaml", row="plain", settings=LONG)
    train(config, Supervised.build, label=RunLabel("toypaper", "plain", "digits", "x"), out=tmp_path / "alone")
    assert_equal_weights(tmp_path / "alone", published[0])


@pytest.mark.slow
def test_a_failing_seed_ends_the_row_with_its_code(toy, tmp_path):
    with start(toy, "diverging", tmp_path) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 5, errors
    assert "Traceback" not in errors
    assert "became NaN or infinite" in errors
    assert errors.splitlines()[-1] == "error: a seed failed; its message is above"
    assert not (tmp_path / "results").exists()


class FakeContext:
    """Stands for the fork server: ``act`` is called in the middle of each start."""

    def __init__(self, act, exitcode):
        self.act, self.exitcode, self.made = act, exitcode, []

    def set_forkserver_preload(self, modules):
        pass

    def Process(self, target, args):  # noqa: N802  # multiprocessing's name
        self.made.append(FakeProcess(self))
        return self.made[-1]


class FakeProcess:
    pid = None

    def __init__(self, context):
        self.context, self.told, self.exitcode, self.asked = context, 0, None, 0

    def start(self):
        self.context.act()
        self.pid = 2**22 + 1

    def terminate(self):
        self.told += 1
        self.exitcode = 143

    def is_alive(self):
        self.asked += 1
        assert self.asked < 100, "nobody has told it to stop"
        if self.exitcode is None:
            self.exitcode = self.context.exitcode
        return self.exitcode is None


def run_fakes(monkeypatch, act, exitcode, jobs=2):
    context = FakeContext(act, exitcode)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    monkeypatch.setenv("VITUTOR_QUIET", "1")
    try:
        seeds.run_commands(PAPER, [["a"], ["b"], ["c"]], jobs, lambda: None)
    finally:
        run_fakes.made = context.made


def test_a_signal_during_a_start_reaches_the_process_that_was_being_started(monkeypatch):
    with pytest.raises(InterruptedRun) as caught:
        run_fakes(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGINT), None, jobs=1)
    assert caught.value.exit_code == 130
    assert [process.told for process in run_fakes.made] == [1]


def test_a_seed_that_was_killed_is_said_to_be(monkeypatch):
    with pytest.raises(VitutorError, match="a seed was killed by SIGKILL") as caught:
        run_fakes(monkeypatch, lambda: None, -signal.SIGKILL)
    assert caught.value.exit_code == 1
    assert len(run_fakes.made) == 2  # the third is not begun


def test_signal_handlers_are_restored(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    run_fakes(monkeypatch, lambda: None, 0)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(run_fakes.made) == 3


class Taught(RunConfig):
    teacher: TeacherConfig = identity(TeacherConfig(recipe="cnn"), help="a teacher")


def test_a_row_starts_from_the_students_of_another_row(toy, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(seeds, "run_commands", lambda paper, arguments, *_: commands.extend(arguments))
    monkeypatch.setattr(seeds, "publish", lambda *_: None)
    monkeypatch.setattr(seeds.shutil, "rmtree", lambda *_, **__: None)
    recipe = toy / "toypaper" / "recipes" / "digits.yaml"
    configs = [resolve(RunConfig, recipe, settings=["student.start_row=plain", f"seed={seed}"]) for seed in (3, 4)]

    def reproduce():
        (tmp_path / "out" / "long.tmp").mkdir(parents=True, exist_ok=True)
        options = {"preset": "p", "settings": (), "teachers": None, "work": tmp_path, "jobs": 1}
        seeds.reproduce_row(PAPER, "long", "digits", configs, out=tmp_path / "out" / "long", **options)

    with pytest.raises(ConfigError, match="reproduce the row 'plain' first"):
        reproduce()
    for seed in (3, 4):
        folder = tmp_path / "out" / "plain" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_bytes(b"same")
    reproduce()
    for seed, command in zip((3, 4), commands, strict=True):
        assert f'student.weights="{tmp_path}/out/plain/seed-{seed}"' in command
        assert command[command.index("--preset") + 1] == "p"
    before = commands.copy()
    (tmp_path / "out" / "plain" / "seed-3" / "student.safetensors").write_bytes(b"others")
    commands.clear()
    reproduce()
    outs = [[command[command.index("--out") + 1] for command in group] for group in (before, commands)]
    assert outs[0][0] != outs[1][0]
    assert outs[0][1] == outs[1][1]


def test_a_teacher_may_be_seed_0_of_another_row(toy, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(seeds, "run_commands", lambda paper, arguments, *_: commands.extend(arguments))
    monkeypatch.setattr(seeds, "publish", lambda *_: None)
    monkeypatch.setattr(seeds.shutil, "rmtree", lambda *_, **__: None)
    recipe = toy / "toypaper" / "recipes" / "digits.yaml"
    config = resolve(Taught, recipe, settings=['teacher={"row": "plain"}', "seed=3"])

    def reproduce():
        (tmp_path / "out" / "long.tmp").mkdir(parents=True, exist_ok=True)
        options = {"preset": None, "settings": (), "teachers": None, "work": tmp_path, "jobs": 1}
        seeds.reproduce_row(PAPER, "long", "digits", [config], out=tmp_path / "out" / "long", **options)

    with pytest.raises(ConfigError, match=r"^teacher: .*seed-0.*reproduce the row 'plain' first"):
        reproduce()
    folder = tmp_path / "out" / "plain" / "seed-0"
    folder.mkdir(parents=True)
    for content in (b"one", b"other"):
        (folder / "student.safetensors").write_bytes(content)
        reproduce()
    assert all(f'teacher.weights="{folder}"' in command for command in commands)
    first, second = (command[command.index("--out") + 1] for command in commands)
    assert first != second


def test_a_run_keeps_its_work_folder_when_its_teacher_had_to_be_trained_first(toy, tmp_path, monkeypatch):
    commands = []

    def train_the_teacher(config, scale, folder):
        (folder / "cnn").mkdir(parents=True, exist_ok=True)
        (folder / "cnn" / "student.safetensors").write_bytes(b"weights")
        return config

    def interrupted(paper, arguments, *_):
        commands.append(arguments)
        raise InterruptedRun("stopped", signal.SIGTERM)

    monkeypatch.setattr(seeds, "with_teachers", train_the_teacher)
    monkeypatch.setattr(seeds, "run_commands", interrupted)
    config = resolve(Taught, toy / "toypaper" / "recipes" / "digits.yaml", row="plain")

    def reproduce(config):
        with pytest.raises(InterruptedRun):
            seeds.reproduce_row(
                PAPER,
                "plain",
                "digits",
                [config],
                preset=None,
                settings=(),
                teachers=None,
                work=tmp_path,
                jobs=1,
                out=tmp_path / "out",
            )

    reproduce(config)
    reproduce(config)
    assert commands[0] == commands[1]
    reproduce(config.changed(["optim.lr=0.5"]))
    assert commands[2] != commands[0]
    (tmp_path / "teachers" / "digits" / "cnn" / "student.safetensors").unlink()
    monkeypatch.setattr(seeds, "with_teachers", lambda config, scale, folder: config)
    reproduce(config)
    assert commands[3] != commands[0]


def test_commands_are_named_without_being_imported():
    assert options.load("vitutor_core.schema:RunConfig") is RunConfig
