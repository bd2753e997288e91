"""Files and folders are whole or absent, and nobody else's files are ever deleted."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal

import pytest

from core.tests.train_samples import full_disk
from vitutor_core import files
from vitutor_core.cli.graph import plan
from vitutor_core.errors import CheckpointError, ConfigError, ResourceError
from vitutor_core.files import atomic, discard, replace_folder, write_json, write_text
from vitutor_core.jobs.evaluate import evaluate_row
from vitutor_core.jobs.teacher import train_teacher
from vitutor_core.paper import Paper
from vitutor_core.report.metrics import write_metrics
from vitutor_core.runs import RunDir, RunRecord, weights_file


def make_run(folder, text="new"):
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    for name in ("run.json", "metrics.json", "curves.csv", "student.safetensors"):
        (folder / name).write_text(text)


def contents(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


PUBLISHED = ("curves.csv", "metrics.json", "student.safetensors")


def publish(where):
    if (where / "work").exists():
        RunDir(where / "work").publish(where / "out")
        discard(where / "work")


def publish_killed(where, point):
    """Publish in a process that is killed before the step ``point``; return its exit code."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    steps = itertools.count()

    def counted(call):
        def called(*arguments, **options):
            if next(steps) == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return called

    code = 1
    try:
        for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        publish(where)
        code = 0
    finally:
        os._exit(code)


def test_a_kill_at_any_point_of_publishing_leaves_nothing_stuck(tmp_path):
    for point in range(60):
        where = tmp_path / str(point)
        make_run(where / "work")
        (where / "out").mkdir()
        for name in PUBLISHED:
            (where / "out" / name).write_text("old")
        code = publish_killed(where, point)
        assert code in (0, -signal.SIGKILL)
        if (where / "work").exists():  # whole, so that it can be published again
            assert (where / "work" / "checkpoints" / "step-00000001" / "state.json").exists()
            if (where / "out").exists():
                assert contents(where / "out") in (dict.fromkeys(PUBLISHED, "old"), dict.fromkeys(PUBLISHED, "new"))
        publish(where)
        assert contents(where / "out") == dict.fromkeys(PUBLISHED, "new")
        assert not (where / "work").exists()
        if code == 0:
            break
        shutil.rmtree(where)
    assert 15 < point < 59


def write_nothing(path):
    with replace_folder(path, "metrics.json"):
        pass


TOY = Paper("toy", config="", method="")
OWNERS = {
    "a published run": lambda out: RunDir(out.parent / "run").publish(out),
    "a teacher": lambda out: train_teacher("digits", "cnn", out, work=out.parent / "work"),
    "an evaluation": lambda out: evaluate_row(
        Paper("toy", config="", method=""), out.parent / "rows", out, None, speed=False
    ),
    "figures of rows": lambda out: write_metrics({}, out, out.parent / "curves"),
    "curves of rows": lambda out: write_metrics({}, out.parent / "figures", out),
    "a plan": lambda out: plan.callback(params=out.parent / "params.yaml", out=out),
}
FOREIGN = {
    "a thesis": ("thesis.txt",),
    "photographs": ("train/cat/1.png", "val/cat/1.png"),
    "hidden files": (".git/config",),
    "a run and a thesis": (*PUBLISHED, "thesis.txt"),
    "a run in training": (*PUBLISHED, ".lock", "checkpoints/step-00000001/state.json"),
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("owner", OWNERS)
def test_a_folder_with_anything_else_is_refused_and_left_alone(tmp_path, owner, foreign):
    out = tmp_path / "out"
    make_run(tmp_path / "run")
    (tmp_path / "rows" / "seed-0").mkdir(parents=True)
    shutil.copy(__file__, tmp_path / "rows" / "seed-0")
    (tmp_path / "params.yaml").write_text("scale: digits\n")
    for name in FOREIGN[foreign]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("years of work")
    with pytest.raises(ConfigError, match=f"{out}: holds something else than the results") as caught:
        OWNERS[owner](out)
    assert caught.value.exit_code == 2
    assert all((out / name).read_text() == "years of work" for name in FOREIGN[foreign])
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("before", ["absent", "empty", "ours", "a link to ours"])
def test_what_is_absent_empty_or_ours_is_replaced(tmp_path, before):
    make_run(tmp_path / "run")
    out = tmp_path / "out"
    if before == "empty":
        out.mkdir()
    elif before != "absent":
        RunDir(tmp_path / "run").publish(tmp_path / "out")
        (out / "metrics.json").write_text("old")
    if before == "a link to ours":
        out.rename(tmp_path / "elsewhere")
        out.symlink_to(tmp_path / "elsewhere")
    RunDir(tmp_path / "run").publish(out)
    assert contents(out) == dict.fromkeys(PUBLISHED, "new")
    assert out.is_symlink() == (before == "a link to ours")
    assert not list(tmp_path.rglob("*.tmp*"))


def test_a_file_in_the_way_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ConfigError, match="is a file; choose another folder"):
        write_nothing(tmp_path / "out")


def test_backups_that_users_make_are_not_ours(tmp_path):
    make_run(tmp_path / "run")
    for name in ("out.old", "out.tmp", "out-backup", "run.old", "run.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    for _ in range(2):
        RunDir(tmp_path / "run").publish(tmp_path / "out")
    discard(tmp_path / "run")
    assert len(list(tmp_path.glob("*/mine"))) == 5


def test_a_failed_write_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with full_disk(10), pytest.raises(ResourceError, match=r"file: cannot write \(File too large\); free some space, "):
        write_text(path, "new" * 1000)
    with pytest.raises(ValueError, match="x"), atomic(path) as partial:  # noqa: PT012
        partial.write_text("half")
        raise ValueError("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ResourceError, match=r"folder: cannot write \(Is a directory\); choose another folder"):
        write_json(tmp_path / "folder", {})
    with pytest.raises(ResourceError, match=r"x: cannot write \(File exists\)"):
        write_json(path / "x", {})
    assert path.read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_what_killed_writers_left_is_deleted_before_its_room_is_needed(tmp_path):
    left, living = tmp_path / ".a.vitutor.tmp-1", tmp_path / ".b.vitutor.tmp-2"
    for path in (left, living):
        path.touch()
    os.utime(left, times=(0, left.stat().st_mtime - 7200))
    with atomic(tmp_path / "new", shared=True) as partial:
        assert not left.exists()
        assert living.exists()
        partial.touch()


def test_a_failed_replacement_keeps_the_folder_that_was_there(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    RunDir(tmp_path / "run").publish(tmp_path / "out")
    before = contents(tmp_path / "out")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(ResourceError, match="No space left"):
        RunDir(tmp_path / "run").publish(tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_content_reaches_the_disk_before_its_name(tmp_path, monkeypatch):
    """After a power cut, a renamed file that was not flushed is empty."""
    flushed, fsync = [], os.fsync

    def noted(descriptor):
        flushed.append((os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")), (tmp_path / "x").exists()))  # noqa: PTH119, PTH115
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", noted)
    write_text(tmp_path / "x", "text")
    assert flushed == [(".x.vitutor.tmp", False), (tmp_path.name, True)]


def test_a_leftover_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".x.vitutor.tmp").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "x", "text")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_folder_or_a_file(tmp_path):
    assert weights_file(tmp_path) == tmp_path / "student.safetensors"
    assert weights_file(tmp_path / "x") == tmp_path / "x"


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", "null", "\xff", '{"paper": 1}', "[" * 100_000])
def test_a_damaged_record_is_one_line(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"metrics\.json: .*; delete this file, and") as caught:
        RunRecord.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_record_round_trip(tmp_path):
    values = {"row": "r", "scale": "s", "seed": 0, "metrics": {"top1": 0.1 + 0.2}, "train_images": 1, "seconds": 1.5}
    values |= {"fingerprint": "f", "data_fingerprint": "d", "teachers": {}, "command": "c", "config": {"a": [1, 2e-5]}}
    record = RunRecord.of(paper="dearkd", **values)
    before = {"git": {"commit": "a", "dirty": True}, "versions": {"torch": "1"}, "machine": {"cores": 1}}
    record = RunRecord.of(**record.model_dump(mode="json") | {"earlier": [before]})
    assert record.commits.endswith(", before that a with uncommitted changes")
    record.write(tmp_path)
    assert RunRecord.read(tmp_path, "dearkd") == record
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == {"top1": 0.1 + 0.2}
