"""Rows: their seeds side by side, published one by one, and trained again only where something changed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from conformance import forked
from conformance.suite import assert_equal_weights
from core.tests.toy_paper import CODE, environment, write_toy_paper
from vitutor_core.config import fingerprinted
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.files import write_json
from vitutor_core.graph.planned import place_in_plan
from vitutor_core.jobs import reproduce
from vitutor_core.jobs.reproduce import Folders, Row, reproduce_row
from vitutor_core.paper import Paper, load
from vitutor_core.progress import RunProgress
from vitutor_core.recipe import resolve
from vitutor_core.schema import RunConfig, TeacherConfig
from vitutor_core.train.session import RunLabel, train
from vitutor_core.train.supervised import Supervised

PAPER = Paper("toypaper", config="vitutor_core.schema:RunConfig", method="vitutor_core.train.supervised:Supervised")
LONG = ("train.epochs=8", "train.epoch_length=full", "train.batch_size=10")
UPDATES = 8 * (901 // 10)
FILES = ("curves.csv", "inputs.json", "metrics.json", "student.safetensors")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return write_toy_paper(tmp_path_factory.mktemp("toy"))


def start(toy, row, where, *settings, seeds="0,1", more=()):
    changes = [option for setting in settings for option in ("--set", setting)]
    return subprocess.Popen(
        [forked.python(), "-c", CODE, "reproduce", row, "--seeds", seeds, "--jobs", "2", *more, *changes],
        cwd=where,
        env=environment(toy),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    with process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    return output.splitlines(), errors.splitlines()


def wait_until(condition, process):
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def interrupt(process):
    process.send_signal(signal.SIGTERM)  # to the parent alone
    _, errors = finish(process, 143)
    assert errors[-1] == "error: stopped and saved; run it again to go on"


def unfinished(where, seed):
    """The folder of a seed that is being trained, once an epoch of it is saved."""
    found = list((where / "work" / "toypaper" / "digits").glob(f"plain-seed-{seed}-*/checkpoints/step-????????"))
    return found[0].parents[1] if found else None


def curves_of(run):
    """The curves as text: they tell how long each epoch took, so two trainings never have the same."""
    text = (run / "curves.csv").read_text()
    assert len(text.splitlines()) > 1
    return text


@pytest.mark.slow
def test_an_interrupted_row_goes_on_and_ends_as_one_that_was_not(toy, tmp_path):
    process = start(toy, "plain", tmp_path, *LONG)
    wait_until(lambda: unfinished(tmp_path, 0) and unfinished(tmp_path, 1), process)
    interrupt(process)
    assert not list((tmp_path / "results").glob("runs/toypaper/plain/seed-*"))
    begun = [curves_of(unfinished(tmp_path, seed)) for seed in range(2)]

    output, _ = finish(start(toy, "plain", tmp_path, *LONG))
    assert output[-1] == "plain: 2 seeds in results/runs/toypaper/plain"
    folder = tmp_path / "results" / "runs" / "toypaper" / "plain"
    assert files_below(folder) == [f"seed-{seed}/{name}" for seed in range(2) for name in FILES]
    assert not files_below(tmp_path / "work")

    published = [folder / f"seed-{seed}" for seed in range(2)]
    assert all(curves_of(run).startswith(before) for run, before in zip(published, begun, strict=True))
    results = [json.loads((run / "metrics.json").read_text()) for run in published]
    assert [(result["seed"], result["updates"]) for result in results] == [(seed, UPDATES) for seed in range(2)]
    assert results[0]["metrics"]["loss"] != results[1]["metrics"]["loss"]
    assert results[1]["command"].startswith("toypaper train --scale digits --row plain --seed 1 --set train.epochs=8")
    config = resolve(RunConfig, toy / "toypaper" / "recipes" / "digits.yaml", row="plain", settings=LONG)
    train(config, Supervised.build, label=RunLabel("toypaper", "plain", "digits", "x"), out=tmp_path / "alone")
    assert_equal_weights(tmp_path / "alone", published[0])


@pytest.mark.slow
def test_a_seed_that_was_finished_when_its_row_was_interrupted_stays(toy, tmp_path):
    folder = tmp_path / "results" / "runs" / "toypaper" / "plain"
    process = start(toy, "plain", tmp_path, *LONG, more=("--jobs", "1"))
    wait_until(lambda: (folder / "seed-0").exists() and unfinished(tmp_path, 1), process)
    interrupt(process)
    assert files_below(folder) == [f"seed-0/{name}" for name in FILES]
    finished, begun = curves_of(folder / "seed-0"), curves_of(unfinished(tmp_path, 1))

    output, _ = finish(start(toy, "plain", tmp_path, *LONG, more=("--jobs", "1")))
    assert output[0] == "plain, seed 0: already in results/runs/toypaper/plain/seed-0"
    assert curves_of(folder / "seed-0") == finished
    assert curves_of(folder / "seed-1").startswith(begun)
    assert files_below(folder) == [f"seed-{seed}/{name}" for seed in range(2) for name in FILES]
    assert not files_below(tmp_path / "work")


@pytest.fixture
def reproduced(monkeypatch, capsys, toy, tmp_path):
    """Reproduce a row in this process, the jobs as well, and return what it prints."""
    monkeypatch.syspath_prepend(toy)
    monkeypatch.chdir(tmp_path)

    def run_jobs(jobs, *_, done, **__):
        for job in jobs:
            load(job.target)(**job.arguments)
            done(job)

    def run(row, *settings, seeds):
        reproduce_row(Row(PAPER, row, "digits", None, settings), seeds, Folders(Path("results"), Path("work")))
        return capsys.readouterr().out.splitlines()

    monkeypatch.setattr(reproduce, "run_jobs", run_jobs)
    yield run
    for name in ("toypaper", "toypaper.cli"):
        sys.modules.pop(name, None)


def test_only_what_changed_is_trained_again(reproduced, tmp_path):
    folder = tmp_path / "results" / "runs" / "toypaper" / "plain"

    def times():
        return {run.name: (run / "metrics.json").stat().st_mtime_ns for run in folder.iterdir()}

    reproduced("plain", seeds=(0,))
    first = times()
    output = reproduced("plain", seeds=(0, 1))
    assert output[0] == "plain, seed 0: already in results/runs/toypaper/plain/seed-0"
    assert times()["seed-0"] == first["seed-0"]
    assert times().keys() == {"seed-0", "seed-1"}
    output = reproduced("plain", "optim.lr=0.02", seeds=(0,))
    assert output[0] == "plain, seed 0: trained again, since optim.lr: 0.01 -> 0.02"
    assert times()["seed-0"] > first["seed-0"]
    inputs = json.loads((folder / "seed-1" / "inputs.json").read_text())
    (folder / "seed-1" / "inputs.json").write_text(json.dumps(inputs | {"code": "other"}))
    output = reproduced("plain", seeds=(1,))
    assert output[0] == f"plain, seed 1: trained again, since code: 'other' -> '{inputs['code']}'"


@pytest.mark.slow
def test_a_row_is_evaluated_from_its_weights_into_records(toy, reproduced, tmp_path):
    reproduced("plain", seeds=(0, 1))
    evaluate = partial(forked.run, CODE, "evaluate", "results/runs/toypaper/plain", cwd=tmp_path, env=environment(toy))
    evaluate("--out", "records", check=True)
    several = evaluate()
    assert (several.returncode, "holds several runs; name one" in several.stderr) == (2, True)
    for seed in range(2):
        trained, evaluated = (
            json.loads((tmp_path / folder / f"seed-{seed}" / "metrics.json").read_text())
            for folder in ("results/runs/toypaper/plain", "records")
        )
        assert evaluated["metrics"] == trained["metrics"] | {
            name: evaluated["metrics"][name] for name in ("parameters", "flops")
        }
        assert {**evaluated, "metrics": None} == {**trained, "metrics": None}


@pytest.mark.slow
def test_two_processes_train_a_run(toy, tmp_path):
    output, _ = finish(start(toy, "plain", tmp_path, seeds="0", more=("--processes", "2")))
    assert output[-1] == "plain: 1 seeds in results/runs/toypaper/plain"
    folder = tmp_path / "results" / "runs" / "toypaper" / "plain" / "seed-0"
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    assert json.loads((folder / "metrics.json").read_text())["metrics"]["images"] == 896
    assert not files_below(tmp_path / "work")


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_failing_seed_ends_the_row_with_its_code(toy, tmp_path, processes):
    seeds = {"1": "0,1", "2": "0"}[processes]
    _, errors = finish(start(toy, "diverging", tmp_path, seeds=seeds, more=("--processes", processes)), 5)
    assert any(line.startswith("error: diverging, seed ") and "became NaN or infinite" in line for line in errors)
    assert errors[-1] == "error: a run failed; its message is above"
    assert not list(tmp_path.rglob("seed-*/metrics.json"))


class Taught(RunConfig):
    teacher: TeacherConfig = fingerprinted(TeacherConfig(recipe="cnn"), help="a teacher")


@pytest.fixture
def jobs(monkeypatch, toy):
    """What would be run, without running it."""
    monkeypatch.syspath_prepend(toy)
    found = []
    monkeypatch.setattr(reproduce, "run_jobs", lambda jobs, *_, **__: found.extend(jobs))
    yield found
    for name in ("toypaper", "toypaper.cli"):
        sys.modules.pop(name, None)


def publish(jobs, folder):
    """Pretend that the jobs were run."""
    for job in jobs:
        target = folder / f"seed-{job.arguments['config']['seed']}"
        target.mkdir(parents=True, exist_ok=True)
        (target / "inputs.json").write_text(json.dumps(job.arguments["inputs"]))
        (target / "metrics.json").touch()
    jobs.clear()


def outs(jobs):
    return [job.arguments["out"] for job in jobs]


def test_a_row_starts_from_the_students_of_another_row(jobs, tmp_path, capsys):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    row = Row(PAPER, "tuned", "digits")
    with pytest.raises(ConfigError, match="reproduce the row 'warm' first"):
        reproduce_row(row, (3, 4), folders)
    starts = [folders.runs(PAPER, "warm") / f"seed-{seed}" for seed in (3, 4)]
    for folder in starts:
        folder.mkdir(parents=True)
        (folder / "student.safetensors").write_bytes(b"same")
    reproduce_row(row, (3, 4), folders)
    assert [job.arguments["config"]["student"]["weights"] for job in jobs] == [str(folder) for folder in starts]
    before = outs(jobs)
    publish(jobs, folders.runs(PAPER, "tuned"))
    (starts[0] / "student.safetensors").write_bytes(b"others")
    capsys.readouterr()
    reproduce_row(row, (3, 4), folders)
    assert [job.name for job in jobs] == ["tuned, seed 3"]
    assert outs(jobs)[0] not in before
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("tuned, seed 3: trained again, since weights: {'student': ")
    assert second.startswith("tuned, seed 4: already in ")


def test_a_teacher_may_be_seed_0_of_another_row(jobs, tmp_path, capsys):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    paper = Paper("toypaper", config=f"{__name__}:Taught", method=PAPER.method)
    row = Row(paper, "long", "digits", settings=('teacher={"row": "plain"}',))
    with pytest.raises(ConfigError, match=r"^teacher: .*seed-0.*reproduce the row 'plain' first"):
        reproduce_row(row, (3,), folders)
    folder = folders.runs(PAPER, "plain") / "seed-0"
    folder.mkdir(parents=True)
    for content in (b"one", b"one", b"other"):
        (folder / "student.safetensors").write_bytes(content)
        reproduce_row(row, (3,), folders)
        assert all(job.arguments["config"]["teacher"]["weights"] == str(folder) for job in jobs)
        publish(jobs, folders.runs(PAPER, "long"))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("long, seed 3: ")]
    assert [line.split()[3] for line in told] == ["already", "trained"]
    assert "trained again, since weights: {'teacher': " in told[1]


def test_data_and_code_are_part_of_what_decides_a_run(jobs, tmp_path, monkeypatch, capsys):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    row = Row(PAPER, "plain", "digits")
    manifest = folders.results / "data" / "digits"
    manifest.parent.mkdir(parents=True)
    for content in ("{}", '{"fingerprint": 1}'):
        manifest.write_text(content)
        reproduce_row(row, (0,), folders)
        publish(jobs, folders.runs(PAPER, "plain"))
    monkeypatch.setattr(reproduce, "train_code", lambda paper: "another")
    reproduce_row(row, (0,), folders)
    assert [job.name for job in jobs] == ["plain, seed 0"]
    told = [line for line in capsys.readouterr().out.splitlines() if "trained again" in line]
    assert [line.partition("since ")[2].split(":")[0] for line in told] == ["data", "code"]


def test_a_row_whose_data_are_missing_says_so(jobs, tmp_path):
    manifest = tmp_path / "results" / "data" / "digits"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"skipped": "no folder x"}')
    with pytest.raises(DataError, match="digits: no folder x; provide it, then plan again"):
        reproduce_row(Row(PAPER, "plain", "digits"), (0,), Folders(tmp_path / "results", tmp_path / "work"))


def test_progress_counts_what_is_being_trained_and_not_what_was_published_before(jobs, tmp_path, monkeypatch):
    folders = Folders(tmp_path / "results", tmp_path / "work")
    seen = []

    def in_three_epochs(jobs, side_by_side, *, tick, done, **_):
        for job in jobs:
            out = Path(job.arguments["out"])
            out.mkdir(parents=True)
            for lines in range(2, 5):
                (out / "curves.csv").write_text("epoch\n" * lines)
                tick()
            (out / "metrics.json").write_text("{}")
            done(job)
            tick()

    class Watched(RunProgress):
        def __init__(self, title, total, *, done, in_turn):
            seen.append((title, total, done, in_turn))
            super().__init__(title, total, done=done, in_turn=in_turn)

        def update(self, done, note, *, in_turn):
            seen.append((done, in_turn))

    monkeypatch.setattr(reproduce, "RunProgress", Watched)
    row = Row(PAPER, "plain", "digits", settings=("train.epochs=3",))
    old = folders.runs(PAPER, "plain") / "seed-0"
    old.mkdir(parents=True)
    for name in ("curves.csv", "metrics.json"):
        (old / name).write_text("epoch\n" * 40)
    monkeypatch.setattr(reproduce, "run_jobs", in_three_epochs)
    reproduce_row(row, (0, 1), folders, jobs=2, title="row 2 of 3, plain")
    # The second of them, which is not begun here while the first one is trained, has three epochs until its own end.
    shown = [(1, 3), (2, 3), (3, 3), (3, 3), (4, 2), (5, 1), (6, 0), (6, 0)]
    assert seen == [("row 2 of 3, plain, epochs", 6, 0, 3), *shown]


@pytest.mark.parametrize(
    ("left", "side_by_side", "epochs"),
    [
        ([10, 10, 10], 2, 20),
        ([4, 6, 10], 2, 14),  # the third begins when the first is done
        ([0, 6, 10], 2, 10),
        ([10, 10, 10], 1, 30),
        ([3, 3], 4, 3),
        ([0, 0, 0], 2, 0),
    ],
)
def test_how_many_epochs_come_one_after_another(left, side_by_side, epochs):
    assert reproduce.in_turn(left, side_by_side) == epochs


def test_a_rows_place_among_those_that_are_run(tmp_path):
    rows = {"vit": {"run": True, "seeds": [0, 1]}, "cnn": {"run": True, "seeds": [0]}, "off": {"run": False}}
    for name, planned in {**rows, "mine": {"run": True, "seeds": [0]}}.items():
        write_json(tmp_path / "plan" / "paper" / f"{name}.json", planned)
    published = tmp_path / "results"

    def place():
        return place_in_plan(tmp_path / "plan", "paper", "mine", published)

    assert place() == "row 1 of 3, mine"
    for run, found in (("cnn/seed-0", 2), ("vit/seed-0", 2), ("vit/seed-1", 3), ("mine/seed-0", 3), ("off/seed-0", 3)):
        write_json(published / run / "metrics.json", {})
        assert place() == f"row {found} of 3, mine"
