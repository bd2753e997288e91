"""The binary CIFAR archives: a tiny one, byte by byte, and every way in which the file can be wrong."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vitutor_core.data import cifar
from vitutor_core.data.sources import open_source
from vitutor_core.data.types import Source
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig

COUNTS = {"cifar10": 10, "cifar100": 100}


@pytest.fixture(autouse=True)
def data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "root"
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(root))
    return root


def record(name: str, index: int, label: int) -> bytes:
    """One record whose pixel (y, x, c) is (index + 7 y + 3 x + 50 c) mod 256; CIFAR-100 has a coarse label first."""
    planes = [(index + 7 * y + 3 * x + 50 * c) % 256 for c in range(3) for y in range(32) for x in range(32)]
    return bytes(([label // 5, label] if name == "cifar100" else [label]) + planes)


def archive(name: str) -> bytes:
    """Write an archive with one image of each class in every file."""
    count = COUNTS[name]
    images = b"".join(record(name, index, count - 1 - index) for index in range(count))
    classes = "\n".join(f"class_{label}" for label in range(count)) + "\n\n"
    if name == "cifar10":
        files = {f"cifar-10-batches-bin/data_batch_{number}.bin": images for number in range(1, 6)}
        files |= {"cifar-10-batches-bin/test_batch.bin": images, "cifar-10-batches-bin/batches.meta.txt": classes}
    else:
        files = {f"cifar-100-binary/{split}.bin": images for split in ("train", "test")}
        files |= {"cifar-100-binary/fine_label_names.txt": classes, "cifar-100-binary/coarse_label_names.txt": "x\n"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(params=sorted(COUNTS))
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """A stand-in for the download server, and the name of the data set that it holds."""
    name = request.param
    content = archive(name)
    file = tmp_path / "server" / cifar.DISTRIBUTIONS[name].url.rpartition("/")[2]
    file.parent.mkdir()
    file.write_bytes(content)
    tiny = cifar.DISTRIBUTIONS[name]._replace(url=file.as_uri(), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(cifar.DISTRIBUTIONS, name, tiny)
    return name, file


def opened(name: str) -> Source:
    return open_source(DataConfig(source=name, image_size=32))


def test_the_published_hashes() -> None:
    # as listed by the checksum files of several data-set libraries
    assert {name: entry.sha256 for name, entry in cifar.DISTRIBUTIONS.items()} == {
        "cifar10": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        "cifar100": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    }


def test_the_archive_is_downloaded_once_and_read_in_place(remote: tuple[str, Path], data_root: Path) -> None:
    name, file = remote
    source = opened(name)
    count = COUNTS[name]
    once = list(range(count - 1, -1, -1))
    assert source.train.labels.tolist() == once * (5 if name == "cifar10" else 1)
    assert source.evaluation.labels.tolist() == once
    assert source.class_names == tuple(f"class_{label}" for label in range(count))
    assert source.mean == cifar.DISTRIBUTIONS[name].statistics.mean
    y, x, c = np.ogrid[:32, :32, :3]
    for split in (source.train, source.evaluation):
        for index in (0, 3, len(split.labels) - 1):
            expected = (index % count + 7 * y + 3 * x + 50 * c) % 256
            np.testing.assert_array_equal(np.asarray(split.read(index)), expected)
    assert [path.name for path in (data_root / name).iterdir()] == [file.name]
    file.unlink()
    assert opened(name).train.content_hash == source.train.content_hash


def test_a_wrong_download_is_refused_and_leaves_nothing(remote: tuple[str, Path], data_root: Path) -> None:
    name, file = remote
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(
        DataError, match=r"the download failed: invalid hash value .*; put the file at .*binary\.tar\.gz"
    ):
        opened(name)
    assert list((data_root / name).iterdir()) == []


def test_a_changed_archive_is_refused(remote: tuple[str, Path], data_root: Path) -> None:
    name, file = remote
    opened(name)
    with (data_root / name / file.name).open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(DataError, match=rf"{file.name}: SHA-256 is .*, expected .*; delete the file to download it"):
        opened(name)


def test_no_network_and_no_folder_are_one_line(
    remote: tuple[str, Path], data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, file = remote
    file.unlink()
    with pytest.raises(DataError, match=r"the download failed: .*No such file"):
        opened(name)
    blocker = data_root / "file"
    blocker.write_text("")
    monkeypatch.setenv("VITUTOR_DATA_ROOT", str(blocker))
    with pytest.raises(DataError, match=r"the download failed: .*file"):
        opened(name)


def test_shards_in_the_root_are_preferred_but_must_be_of_the_data_set(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: pytest.fail("went to the network"))
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (9, 9, 9)).save(buffer, "PNG")
    (data_root / "cifar10").mkdir(parents=True)
    for count in (10, 9):
        for split in ("train", "test"):
            rows = {"img": [{"bytes": buffer.getvalue(), "path": None}] * count, "label": list(range(count))}
            pq.write_table(pa.table(rows), data_root / "cifar10" / f"{split}-00000-of-00001.parquet")
        if count == 10:
            source = opened("cifar10")
            assert (source.name, len(source.train.labels)) == ("cifar10", 10)
            assert (source.mean, source.std) == tuple(cifar.DISTRIBUTIONS["cifar10"].statistics)
    with pytest.raises(DataError, match="9 classes, cifar10 has 10; wrong files"):
        opened("cifar10")
