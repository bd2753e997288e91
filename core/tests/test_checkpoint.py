from __future__ import annotations

import json
import os
import resource
import shutil
import signal

import pytest
import torch

from conformance import forked
from vitutor_core import files
from vitutor_core.errors import CheckpointError, ResourceError
from vitutor_core.train import checkpoint

IDENTITY = {"method": "m", "config": {}}


def save(root, step, value=1.0):
    return checkpoint.save(root, step, {"method": {"w": torch.full((8,), value)}}, {"note": step}, IDENTITY)


def test_round_trip(tmp_path):
    save(tmp_path, 3, 5.0)
    found = checkpoint.latest(tmp_path)
    assert (found.step, found.state, found.identity) == (3, {"note": 3}, IDENTITY)
    assert torch.equal(found.tensors("method")["w"], torch.full((8,), 5.0))
    assert oct((found.path / "method.safetensors").stat().st_mode & 0o044) == oct(0o044 & ~files._umask())


def test_latest_is_by_step_whatever_the_times(tmp_path):
    for step in (9, 10, 100):
        os.utime(save(tmp_path, step), (1e9 - step, 1e9 - step))
    assert checkpoint.latest(tmp_path).step == 100


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["method.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["empty", "half", "flip", "delete"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    if damage == "delete":
        path.unlink()
    elif damage == "flip":
        data[-1 if name.endswith("safetensors") else 0] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2 if damage == "half" else 0])
    with pytest.warns(UserWarning, match="using the one before"):
        assert checkpoint.latest(tmp_path).step == 1


def test_all_damaged_is_an_error_not_a_restart(tmp_path):
    (save(tmp_path, 1) / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match="manifest"), pytest.raises(CheckpointError, match="none of the 1"):
        checkpoint.latest(tmp_path)


def test_newer_schema_is_refused(tmp_path):
    path = save(tmp_path, 1) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(CheckpointError, match="schema 99"):
        checkpoint.read(path.parent)


def test_prune_keeps_two_and_the_best(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, keep={2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


NOT_OURS = ("step-00000003-backup", "step-foo", "step-7", "step-00000004.tmp-12", "my-step-00000009", "step-")


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path, kind):
    (tmp_path / "elsewhere").mkdir()
    root = tmp_path / "checkpoints"
    root.mkdir()
    for name in NOT_OURS:
        if kind == "folder":
            shutil.copytree(save(tmp_path / "other", 9), root / name)
        elif kind == "file":
            (root / name).write_text("mine")
        else:
            (root / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in root.iterdir())
    for step in (1, 2, 3, 4):
        save(root, step)
        checkpoint.prune(root, keep={1})
    files.discard_partial(root)
    assert checkpoint.latest(root).step == 4
    ours = ["step-00000001", "step-00000003", "step-00000004"]
    assert sorted(path.name for path in root.iterdir()) == sorted([*before, *ours])


@pytest.mark.parametrize("listed", ["{}", '{"state.json": {}}'])
def test_a_manifest_that_lists_no_files_verifies_nothing(tmp_path, listed):
    save(tmp_path, 1)
    manifest = save(tmp_path, 2) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": json.loads(listed)}))
    with pytest.warns(UserWarning, match="using the one before"):
        assert checkpoint.latest(tmp_path).step == 1


KILLED_WRITER = """
import os, signal, sys, torch
from pathlib import Path
from vitutor_core import files
from vitutor_core.train import checkpoint
root, moment = Path(sys.argv[1]), sys.argv[2]
save = lambda step: checkpoint.save(root, step, {"method": {"w": torch.ones(8)}}, {}, {"method": "m"})
save(1)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if moment == "start":
    checkpoint._write_payload = die
elif moment == "middle":
    checkpoint.write_tensors = lambda path, tensors: (path.write_bytes(b"half"), die())
elif moment == "before manifest":
    checkpoint._write_manifest = die
else:
    files._flush_all = die
save(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "middle", "before manifest", "before rename"])
def test_kill_during_a_write_leaves_the_last_good_one(tmp_path, moment):
    done = forked.run(KILLED_WRITER, tmp_path, moment)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob(".step-00000002*")]
    assert checkpoint.latest(tmp_path).step == 1
    files.discard_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_full_disk_leaves_the_last_good_one_and_says_so(tmp_path):
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(ResourceError, match=r"step-00000002: cannot write .*; free some space, .*needs 400,000"):
            checkpoint.save(tmp_path, 2, {"method": {"w": torch.zeros(100_000)}}, {}, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.latest(tmp_path).step == 1
