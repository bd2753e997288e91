"""Decoded images that earlier runs left: the same batches, and never from a file that is not as it was written."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.train_samples import same, tiny_config
from vitutor_core.data.build import build_data
from vitutor_core.data.loaders import decoded
from vitutor_core.data.sources.images import _ArrayImages, _FileImages
from vitutor_core.files import atomic

SETTINGS = ("data.per_class=2", "train.batch_size=4", "runtime.eval_batch_size=300")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The cache's folder, for sets of any size."""
    monkeypatch.setenv("VITUTOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decoded, "_WORTH", 1)
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def reads(monkeypatch):
    """The images that are decoded."""
    found = []
    for kind in (_ArrayImages, _FileImages):
        read = kind.read
        monkeypatch.setattr(kind, "read", lambda self, index, read=read: found.append(index) or read(self, index))
    return found


def batches(*settings):
    """The first batches of two epochs, and all for evaluation, by name."""
    data = build_data(tiny_config(*SETTINGS, *settings), device=torch.device("cpu"))
    steps = itertools.chain(data.train.epoch(0), data.train.epoch(1, start_step=3))
    trained = {f"train {number}": batch.images for number, (batch,) in enumerate(steps)}
    return trained | {f"evaluation {number}": images for number, (images, _) in enumerate(data.evaluation)}


@pytest.mark.parametrize("settings", [("data.image_size=24",), ("augment.pad_crop=0", "augment.crop_scale=[0.5, 1.0]")])
def test_batches_are_those_of_decoding_bit_for_bit(folder, reads, settings):
    expected = batches(*settings, "data.decoded_gb=0")
    assert not folder.exists()
    assert same(batches(*settings), expected)
    assert len(list(folder.glob("*.pixels"))) == 2
    reads.clear()
    assert same(batches(*settings), expected)
    assert len(reads) <= 1  # the first, whose size says whether crops follow from it
    assert len(list(folder.iterdir())) == 2


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "one bit":
        content[len(content) // 2] ^= 1
    elif how == "its sum":
        content[-1] ^= 1
    elif how == "half":
        content = content[: len(content) // 2]
    elif how == "zeros":  # as after a power cut
        content = bytes(len(content))
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["one bit", "its sum", "half", "zeros"])
def test_a_damaged_file_is_found_and_written_again(folder, how):
    expected = batches()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for path in before:
        damage(path, how)
    assert same(batches(), expected)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_file_of_other_images_is_not_taken_under_another_name(folder):
    batches()
    others = set(folder.iterdir())
    expected = batches("data.subset_seed=1", "data.decoded_gb=0")
    batches("data.subset_seed=1")
    (mine,) = set(folder.iterdir()) - others
    other = next(path for path in others if path.stat().st_size == mine.stat().st_size)
    mine.write_bytes(other.read_bytes())
    assert same(batches("data.subset_seed=1"), expected)


@pytest.mark.parametrize(
    "setting", ["data.image_size=32", "data.interpolation=bicubic", "data.per_class=3", "data.crop_ratio=0.5"]
)
def test_other_pixels_have_another_file(folder, setting):
    batches("data.image_size=24")
    expected = batches("data.image_size=24", setting, "data.decoded_gb=0")
    assert same(batches("data.image_size=24", setting), expected)
    assert len(list(folder.iterdir())) > 2


def test_images_of_the_same_name_and_size_are_told_by_their_bytes(folder, tmp_path):
    root = tmp_path / "images"
    for split, label, number in itertools.product(("train", "val"), "ab", range(4)):
        (root / split / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (40 * number, 0, 200)).save(root / split / label / f"{number}.bmp")
    settings = (f"data.source=folder:{root}", "data.per_class=null", "augment.pad_crop=0")
    first = batches(*settings)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "train" / "a" / "0.bmp")
    changed = batches(*settings)
    assert not same(changed, first)
    assert same(changed, batches(*settings, "data.decoded_gb=0"))


def test_it_holds_what_it_may_and_the_longest_unused_goes_first(folder):
    def make(value, size=1000):
        return decoded.kept(lambda: [value], (size,), 3500e-9, lambda: np.full(size, value, np.uint8))

    for value in range(3):
        make(value)
        for path in folder.iterdir():  # an hour passes
            os.utime(path, times=(0, path.stat().st_mtime - 3600))
    first = {path.read_bytes()[0]: path for path in folder.iterdir()}
    make(0)  # used again
    make(3)
    assert {path.read_bytes()[0] for path in folder.iterdir()} == {0, 2, 3}
    assert not first[1].exists()
    make(4, size=4000)
    assert len(list(folder.iterdir())) == 3


def test_few_images_are_decoded_each_time(folder, monkeypatch):
    monkeypatch.setattr(decoded, "_WORTH", 2**24)
    batches()
    assert not folder.exists()


def test_it_may_be_deleted_while_a_run_reads_it_and_a_run_changes_nothing_in_it(folder):
    pixels = np.arange(256, dtype=np.uint8)

    def ours():
        return decoded.kept(lambda: [], (256,), 1.0, pixels.copy)

    ours()
    (path,) = folder.iterdir()
    before = path.read_bytes()
    found = ours()
    found += 1
    assert path.read_bytes() == before
    found = ours()
    path.unlink()
    assert (found == pixels).all()


def test_a_cache_that_cannot_be_written_is_a_warning_and_the_run_goes_on(tmp_path, monkeypatch):
    expected = batches("data.decoded_gb=0")
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITUTOR_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"decoded images are not kept: .*; VITUTOR_CACHE names .*decoded_gb=0 keeps"):
        assert same(batches(), expected)


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def lost(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("VITUTOR_CACHE")
    monkeypatch.setattr(Path, "expanduser", lost)
    with pytest.warns(UserWarning, match="are not kept: there is no home folder for a cache"):
        assert len(decoded.kept(lambda: [], (600,), 1.0, lambda: np.zeros(600, np.uint8))) == 600


def test_a_read_only_cache_is_read(folder, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError

    def ours(make):
        return decoded.kept(lambda: [], (600,), 1.0, make)

    ours(lambda: np.ones(600, np.uint8))
    monkeypatch.setattr(Path, "touch", read_only)
    assert ours(lambda: pytest.fail("decoded again")).all()


def test_a_full_disk_is_a_warning_too(folder, monkeypatch):
    usage = decoded.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: usage)
    with pytest.warns(UserWarning, match="GiB are free"):
        assert len(decoded.kept(lambda: [], (600,), 1.0, lambda: np.zeros(600, np.uint8))) == 600
    assert not list(folder.iterdir())


def test_writers_side_by_side_do_not_meet_and_what_a_killed_one_left_goes(folder: Path, monkeypatch):
    target = folder / "one.pixels"
    with atomic(target, shared=True) as mine:
        mine.write_bytes(b"mine")
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            with atomic(target, shared=True) as other:
                other.write_bytes(b"other")
        assert target.read_bytes() == b"other"
    assert target.read_bytes() == b"mine"
    left, living = folder / ".a.pixels.vitutor.tmp-1", folder / ".b.pixels.vitutor.tmp-2"
    left.touch()
    living.touch()
    os.utime(left, times=(0, time.time() - 7200))
    batches()
    assert living.exists()
    assert not left.exists()


def test_pillow_with_another_libjpeg_decodes_again(folder, monkeypatch):
    monkeypatch.setattr(decoded, "_decoder", decoded._decoder.__wrapped__)  # each call asks, as a new process does

    def ours(value):
        return decoded.kept(lambda: [], (600,), 1.0, lambda: np.full(600, value, np.uint8))[0]

    version = decoded.features.version
    assert [ours(1), ours(2)] == [1, 1]
    monkeypatch.setattr(decoded.features, "version", lambda name: "9.9" if name == "libjpeg_turbo" else version(name))
    assert ours(3) == 3


def test_what_another_process_deletes_meanwhile_is_no_warning(folder, monkeypatch, recwarn):
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.pixels").write_bytes(bytes(900))
        (folder / f".{number}.pixels.vitutor.tmp-7").touch()
    listed = Path.glob

    def glob(self, pattern):
        found = list(listed(self, pattern))
        found[0].unlink()
        return found

    monkeypatch.setattr(Path, "glob", glob)
    decoded.kept(lambda: [], (600,), 1800e-9, lambda: np.zeros(600, np.uint8))
    monkeypatch.undo()
    assert not recwarn.list
    assert sorted(path.stat().st_size for path in folder.glob("*.pixels")) == [632, 900]
