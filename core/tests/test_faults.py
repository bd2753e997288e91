from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from functools import partial

import pytest
import torch

from conformance.suite import Crash
from core.tests.train_samples import (
    STEPS_PER_EPOCH,
    after_each_update,
    assert_same_run,
    before_update,
    crash,
    full_disk,
    run,
    steps_of,
)
from vitutor_core.errors import CheckpointError, ConfigError, ResourceError
from vitutor_core.runs import RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train import checkpoint, evaluation, loop, session
from vitutor_core.train.method import Report, Traits
from vitutor_core.train.run_folder import RunFolder
from vitutor_core.train.supervised import Supervised


def crash_in_epoch(out, monkeypatch, epoch):
    """Leave a run as a kill in the middle of an epoch does."""
    with monkeypatch.context() as patch:
        before_update(patch, epoch * STEPS_PER_EPOCH + 2, crash)
        with pytest.raises(Crash):
            run(out)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "method.safetensors"),
    "half a file": lambda folder: os.truncate(folder / "optimizer.safetensors", 700),
    "a lost file": lambda folder: (folder / "state.json").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").write_text(""),
    "another manifest": lambda folder: (folder / "manifest.json").write_text(
        '{"schema_version": 1, "step": 10, "files": []}'
    ),
    "another step": lambda folder: shutil.copytree(folder, folder.with_name("step-00000012")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_costs_an_epoch_and_nothing_else(tmp_path, monkeypatch, whole, damage):
    out = tmp_path / "run"
    crash_in_epoch(out, monkeypatch, 2)
    newest = out / "checkpoints" / "step-00000010"
    DAMAGE[damage](newest)
    steps = []
    after_each_update(monkeypatch, lambda updater: steps.append(updater.state.step))
    with pytest.warns(UserWarning, match=r"step-000000\d\d.*using the one before"):
        run(out)
    assert steps[0] == (11 if damage == "another step" else 6)
    assert_same_run(out, whole)


def test_nothing_whole_is_an_error_and_not_a_restart(tmp_path, monkeypatch):
    out = tmp_path / "run"
    crash_in_epoch(out, monkeypatch, 2)
    for folder in (out / "checkpoints").iterdir():
        flip_a_bit(folder / "method.safetensors")
    with pytest.warns(UserWarning, match="SHA-256"), pytest.raises(CheckpointError, match="none of the 2") as caught:
        run(out)
    assert caught.value.exit_code == 4


def test_what_a_killed_writer_left_is_removed_at_the_next_start(tmp_path, monkeypatch, whole):
    out = tmp_path / "run"
    write, calls = checkpoint._write_manifest, itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_manifest", lambda *a: write(*a) if next(calls) == 1 else crash())
        with pytest.raises(Crash):
            run(out)
    assert list((out / "checkpoints").glob(".step-00000010*"))
    run(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize("what", ["step-00000010", r"curves\.csv", r"student\.safetensors", r"metrics\.json"])
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, whole, what):
    out = tmp_path / "run"
    module, function = {
        "step-00000010": (checkpoint, "save"),
        r"curves\.csv": (RunFolder, "write_curves"),
        r"student\.safetensors": (session, "save_model"),
        r"metrics\.json": (RunRecord, "write"),
    }[what]
    at_the_end = module in (session, RunRecord)
    with monkeypatch.context() as patch:
        original = getattr(module, function)
        calls = itertools.count(1)

        def on_a_full_disk(*arguments):
            if next(calls) == 2 or at_the_end:
                with full_disk(50):
                    return original(*arguments)
            return original(*arguments)

        patch.setattr(module, function, on_a_full_disk)
        with pytest.raises(ResourceError, match=f"{out}.*{what}.*cannot write") as caught:
            run(out)
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert checkpoint.latest(out / "checkpoints").step == (15 if at_the_end else 5)
    assert not list(out.rglob("*.tmp*"))
    run(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize(("free", "file"), [(0, ""), (10, "/run.json")])
def test_a_disk_that_is_full_from_the_start_is_named(tmp_path, free, file):
    with full_disk(free), pytest.raises(ResourceError, match=rf"{tmp_path}/run{file}: cannot write"):
        run(tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def out_of_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("act", [out_of_gpu_memory, lambda: torch.empty(10**16)], ids=["accelerator", "CPU"])
def test_out_of_memory_says_what_to_change_and_keeps_the_checkpoint(tmp_path, monkeypatch, whole, act):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        before_update(patch, 7, act)
        expected = r"batch 20, 16 px, fp32, peak .* GiB; train\.accumulate=2 halves the memory and keeps the effective"
        with pytest.raises(ResourceError, match=expected) as caught:
            run(out)
    assert caught.value.exit_code == 6
    assert steps_of(out) == [5]
    run(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize("act", [out_of_gpu_memory, lambda: torch.empty(10**16)], ids=["accelerator", "CPU"])
@pytest.mark.parametrize("where", ["after an epoch", "at the end", "evaluate"])
def test_out_of_memory_in_an_evaluation_says_which_batch_to_change(tmp_path, monkeypatch, where, act):
    out, build = tmp_path / "run", Supervised.build
    if where == "at the end":
        report = lambda _, probe=None, evaluation=None: act() if evaluation is not None else Report()  # noqa: E731
        build = type("Measured", (Supervised,), {"traits": Traits(measures=True), "report": report}).build
    elif where == "after an epoch":
        monkeypatch.setattr(loop, "measure", lambda *_, **__: act())
    else:
        run(out)
        monkeypatch.setattr(evaluation, "measure", lambda *_, **__: act())
        build = None
    expected = r"out of memory in the evaluation, with batches of \d+ images; .*--set runtime\.eval_batch_size=\d+"
    measure = partial(run, out, build=build) if build is not None else partial(evaluation.evaluate_run, out)
    given = () if build is not None else (RunRecord.read(out), RunConfig, Supervised.build)
    with pytest.raises(ResourceError, match=expected):
        measure(*given)


@pytest.mark.parametrize("damage", ["deleted", "empty", "garbage"])
def test_curves_that_are_lost_are_written_again(tmp_path, monkeypatch, whole, damage):
    out = tmp_path / "run"
    crash_in_epoch(out, monkeypatch, 2)
    path = out / "curves.csv"
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(range(256)))
    run(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize("text", ["", "{}", "{", "\xff"])
def test_a_damaged_result_is_one_line_that_says_what_to_delete(tmp_path, whole, text):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "metrics.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"metrics\.json: .*; delete this file, and the command"):
        run(out)
    (out / "metrics.json").unlink()
    run(out)
    assert_same_run(out, whole)


def test_equal_runs_write_equal_files(tmp_path):
    for name in ("one", "other"):
        run(tmp_path / name, "train.epochs=1", "train.ema_decay=0.9")
    for name in ("student.safetensors", "student_ema.safetensors"):
        one, other = ((tmp_path / out / name).read_bytes() for out in ("one", "other"))
        assert one == other


def test_a_mistake_that_is_found_late_does_not_keep_the_folder(tmp_path):
    for setting in ("optim.name=adamx", "runtime.device=meta"):
        with pytest.raises(ConfigError):
            run(tmp_path / "run", setting)
        assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    with pytest.raises(ConfigError, match="adamx"):
        run(tmp_path / "run", "optim.name=adamx")
    run(tmp_path / "run", "train.epochs=1")


def test_other_runtime_errors_are_bugs_and_stay_as_they_are(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("a bug")

    before_update(monkeypatch, 1, fail)
    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path / "run")


def test_clocks_that_run_backwards_change_nothing(tmp_path, monkeypatch, whole):
    out = tmp_path / "run"
    past = itertools.count(2e9, -86400)
    monkeypatch.setattr(time, "time", lambda: float(next(past)))
    crash_in_epoch(out, monkeypatch, 2)
    for folder in (out / "checkpoints").iterdir():  # the oldest looks newest
        for path in (folder, *folder.iterdir()):
            os.utime(path, (2e9 - int(folder.name[-2:]) * 1e6,) * 2)
    steps = []
    after_each_update(monkeypatch, lambda updater: steps.append(updater.state.step))
    run(out)
    assert steps[0] == 11
    assert_same_run(out, whole)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optim.lr=0.02", r"optim\.lr: 0\.01 -> 0\.02"),
        ("train.batch_size=25", r"train\.batch_size: 20 -> 25"),
        ("seed=3", "seed: 0 -> 3"),
        ("data.per_class=11", r"data: '\w{12}\.\.\.' -> '\w{12}\.\.\.'; data\.per_class: 10 -> 11"),
    ],
)
def test_another_identity_is_refused_with_the_difference(whole, setting, expected):
    before = (whole / "run.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"this folder holds another run \({expected}\); choose another --out"):
        run(whole, setting)
    assert (whole / "run.json").read_bytes() == before


def test_runtime_fields_may_change_in_the_middle_and_are_recorded(tmp_path, monkeypatch, whole):
    out = tmp_path / "run"
    crash_in_epoch(out, monkeypatch, 1)
    run(out, "runtime.log_every_steps=3", "runtime.workers=1", "runtime.checkpoint_every_epochs=2")
    assert_same_run(out, whole)
    assert len(json.loads((out / "run.json").read_text())["sessions"]) == 2


def test_a_checkpoint_of_another_run_is_refused(tmp_path, whole, monkeypatch):
    out = tmp_path / "run"
    crash_in_epoch(out, monkeypatch, 1)
    shutil.rmtree(out / "checkpoints")
    with monkeypatch.context() as patch:
        before_update(patch, 7, crash)
        with pytest.raises(Crash):
            run(tmp_path / "deeper", "student.kwargs.depth=2")
    shutil.copytree(tmp_path / "deeper" / "checkpoints", out / "checkpoints")
    with pytest.raises(ConfigError, match=r"student\.kwargs\.depth: 2 -> 1"):
        run(out)
    manifest = out / "checkpoints" / "step-00000005" / "manifest.json"
    forged = json.loads(manifest.read_text())
    forged["identity"] = json.loads((out / "run.json").read_text())["identity"]
    manifest.write_text(json.dumps(forged))
    with pytest.raises(CheckpointError, match=r"weights of another model \(unknown: student\.blocks\.1"):
        run(out)
    forged["identity"]["method"] = "another"
    manifest.write_text(json.dumps(forged))
    with pytest.raises(CheckpointError, match="a run of another, not of supervised"):
        run(out)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ResourceError, match=f"{out}: cannot write there .* choose another --out") as caught:
            run(out)
        assert caught.value.exit_code == 6
    assert (tmp_path / "file").read_text() == "mine"


def test_a_set_up_that_fails_leaves_no_folder_and_takes_no_others(tmp_path):
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "new" / "er" / "run", tmp_path / "mine" / "run"):
        with pytest.raises(ConfigError, match="larger than an epoch"):
            run(out, "train.batch_size=1000")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_paths_with_spaces_and_other_letters(tmp_path, monkeypatch, whole):
    out = tmp_path / "my runs" / "größe 日本 'x'" / "run"
    crash_in_epoch(out, monkeypatch, 1)
    run(out)
    assert_same_run(out, whole)


def test_files_can_be_read_by_others_if_the_mask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        run(tmp_path / "run", "train.epochs=1")
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert len(modes) == 9
    assert set(modes.values()) == {"0o644"}
