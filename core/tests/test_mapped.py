"""Shards are mapped into memory: flat in the size of the set, made once, made anew where that is needed."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.memory import measure, write_set
from core.tests.source_samples import opened, shades
from core.tests.test_parquet import write_shard
from vitutor_core.data.sources import mapped
from vitutor_core.errors import DataError, ResourceError


@pytest.fixture
def bugs(data_root: Path) -> Path:
    write_shard(data_root / "bugs" / "train.parquet", [0, 1, 0, 1], [1, 2, 3, 4])
    write_shard(data_root / "bugs" / "test.parquet", [0, 1], [5, 6])
    return data_root / "bugs"


def files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.slow
def test_memory_is_flat_in_the_size_of_the_set(tmp_path: Path) -> None:
    first, again = [], []
    for mebibytes in (96, 224):
        write_set(tmp_path / "set", mebibytes)
        first.append(measure(tmp_path / "set")["peak_mib"])
        again.append(measure(tmp_path / "set")["peak_mib"])
        shutil.rmtree(tmp_path / "set")
    assert abs(first[1] - first[0]) < 40
    assert max(again) < 40


def test_a_split_takes_no_images_along_to_a_worker(data_root: Path) -> None:
    write_set(data_root / "noise", 12)
    split = opened("parquet:noise").train
    text = pickle.dumps(split)
    assert len(text) < 10_000
    copy = pickle.loads(text)  # noqa: S301 - our own object
    assert copy.read(3).tobytes() == split.read(3).tobytes()


def test_the_copy_is_made_once_by_processes_that_start_together(bugs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, write = [], mapped._write

    def slow(path: Path, *arguments: object) -> None:
        made.append(path)
        time.sleep(0.05)
        write(path, *arguments)

    monkeypatch.setattr(mapped, "_write", slow)
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(opened, ["parquet:bugs"] * 4))
    assert {tuple(shades(source.train)) for source in sources} == {(1, 2, 3, 4)}
    assert len(made) == len(set(made)) == 2
    opened("parquet:bugs")
    assert len(made) == 2
    assert files(bugs / ".arrow") == [".arrow", ".arrow"]


@pytest.mark.parametrize("damage", [lambda text: b"", lambda text: text[:-20], lambda text: b"junk"])
def test_a_damaged_copy_is_made_anew(bugs: Path, damage: object) -> None:
    opened("parquet:bugs")
    mapped.open_mapped.cache_clear()
    for path in (bugs / ".arrow").glob("*.arrow"):
        path.write_bytes(damage(path.read_bytes()))
    assert shades(opened("parquet:bugs").train) == [1, 2, 3, 4]


def test_changed_shards_get_a_copy_of_their_own(bugs: Path) -> None:
    before, size = opened("parquet:bugs"), (bugs / "train.parquet").stat().st_size
    write_shard(bugs / "train.parquet", [1, 0, 1, 0], [1, 2, 3, 4])
    assert (bugs / "train.parquet").stat().st_size == size
    after = opened("parquet:bugs")
    assert after.train.labels.tolist() == [1, 0, 1, 0]
    assert after.train.content_hash != before.train.content_hash
    assert after.evaluation.content_hash == before.evaluation.content_hash


def test_a_copy_that_fails_leaves_nothing(bugs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise DataError("broken")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_batches", fail)
        with pytest.raises(DataError, match="broken"):
            opened("parquet:bugs")
    assert files(bugs / ".arrow") == []
    assert shades(opened("parquet:bugs").train) == [1, 2, 3, 4]


def test_where_the_copy_lies(bugs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: bugs not in (path, path.parent) and access(path, mode))
    assert shades(opened("parquet:bugs").train) == [1, 2, 3, 4]  # as of a read-only folder
    assert len(files(tmp_path / "user" / "vitutor")) == 2
    monkeypatch.setenv("VITUTOR_CACHE", str(tmp_path / "chosen"))
    assert shades(opened("parquet:bugs").train) == [1, 2, 3, 4]
    assert len(files(tmp_path / "chosen")) == 2
    assert not (bugs / ".arrow").exists()


def test_no_room_and_no_folder_are_one_line(bugs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITUTOR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"file: cannot write a copy of .*bugs there: File exists; let VIT"):
        opened("parquet:bugs")
    monkeypatch.setenv("VITUTOR_CACHE", str(tmp_path / "full"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(100))
    with pytest.raises(ResourceError, match=r"full: cannot write a copy of .*bugs there: less than 0\.0 GiB are free"):
        opened("parquet:bugs")
