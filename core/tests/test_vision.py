"""Every entry of the torchvision table on a tiny copy of its files, and timm's reader on a stand-in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from core.tests.source_samples import opened, shades
from vitutor_core.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("data_root")
SPLITS = {"train": [3, 0, 9, 1, 4, 7, 2, 5, 8, 6], "test": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}
"""Labels of the tiny copies: ten classes, one image of each."""


def grey(split: str, index: int) -> int:
    """Shade of image ``index``: every image of a copy has its own."""
    return 10 * index + (split == "test")


def greys(split: str) -> NDArray[np.uint8]:
    return np.array([grey(split, index) for index in range(10)], dtype=np.uint8)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def picture(path: Path, shade: int) -> None:
    """Write a PNG, so that shades are exact, under the name of a JPEG."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(buffer, "PNG")
    write(path, buffer.getvalue())


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def make_mnist(root: Path, dataset: str) -> None:
    raw = root / dataset / "raw"
    for split, labels in SPLITS.items():
        prefix = "train" if split == "train" else "t10k"
        pixels = np.repeat(greys(split), 28 * 28).tobytes()
        for name, content in (
            (f"{prefix}-images-idx3-ubyte", struct.pack(">4i", 0x803, 10, 28, 28) + pixels),
            (f"{prefix}-labels-idx1-ubyte", struct.pack(">2i", 0x801, 10) + bytes(labels)),
        ):
            write(raw / name, content)
            write(raw / f"{name}.gz", gzip.compress(content, mtime=0))


def make_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    root.mkdir(parents=True)
    listed = {}
    for split, labels in SPLITS.items():
        path = root / f"{split}_32x32.mat"
        pixels = np.tile(greys(split), (32, 32, 3, 1))
        pixels[2, 5, 1, 0] = 77  # row, column, channel, image
        numbers = np.array([[label or 10] for label in labels], np.uint8)  # the digit 0 is stored as 10
        scipy.io.savemat(path, {"X": pixels, "y": numbers})
        listed[split] = ["", path.name, md5(path)]
    patch.setattr(datasets.SVHN, "split_list", listed)


def make_stl10(root: Path, patch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    for split, labels in SPLITS.items():
        pixels = write(folder / f"{split}_X.bin", np.repeat(greys(split), 3 * 96 * 96).tobytes())
        numbers = write(folder / f"{split}_y.bin", bytes(label + 1 for label in labels))
        patch.setattr(datasets.STL10, f"{split}_list", [[file.name, md5(file)] for file in (pixels, numbers)])
    write(folder / "class_names.txt", "".join(f"class {label}\n" for label in range(10)))
    write(root / "stl10_binary.tar.gz", "archive")


def make_flowers(root: Path, patch: pytest.MonkeyPatch) -> None:
    """The ten classes are the first of 102; the others have one image each, in val and at the end of test."""
    folder = root / "flowers-102"
    others = list(range(10, 102))
    labels = [*SPLITS["train"], *others, *SPLITS["test"], *others]
    every_shade = [*greys("train").tolist(), *[200] * 92, *greys("test").tolist(), *[201] * 92]
    for number, shade in enumerate(every_shade, start=1):
        picture(folder / "jpg" / f"image_{number:05d}.jpg", shade)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([labels]) + 1})
    ids = {"trnid": np.arange(1, 11), "valid": np.arange(11, 103), "tstid": np.arange(103, 205)}
    scipy.io.savemat(folder / "setid.mat", ids)
    archive = write(folder / "102flowers.tgz", "archive")
    files = {"image": archive, "label": folder / "imagelabels.mat", "setid": folder / "setid.mat"}
    patch.setattr(datasets.Flowers102, "_file_dict", {key: (file.name, md5(file)) for key, file in files.items()})


def make_pets(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    for split, labels in SPLITS.items():
        lines = []
        for index, label in enumerate(labels):
            name = f"breed_{label}_{grey(split, index)}"
            picture(folder / "images" / f"{name}.jpg", grey(split, index))
            lines.append(f"{name} {label + 1} 1 1\n")
        write(folder / "annotations" / ("trainval.txt" if split == "train" else "test.txt"), "".join(lines))
    write(folder / "images.tar.gz", "archive")


def make_aircraft(root: Path) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    write(folder / "variants.txt", "".join(f"Boeing {label}\n" for label in range(10)))
    for split, labels in SPLITS.items():
        lines = []
        for index, label in enumerate(labels):
            picture(folder / "images" / f"{grey(split, index):07d}.jpg", grey(split, index))
            lines.append(f"{grey(split, index):07d} Boeing {label}\n")
        write(folder / f"images_variant_{'trainval' if split == 'train' else 'test'}.txt", "".join(lines))
    write(root / "fgvc-aircraft-2013b.tar.gz", "archive")


def make_food(root: Path) -> None:
    for split, labels in SPLITS.items():
        listed = {}
        for index, label in enumerate(labels):
            listed[f"dish_{label}"] = [f"dish_{label}/{grey(split, index)}"]
            picture(root / "food-101" / "images" / f"dish_{label}" / f"{grey(split, index)}.jpg", grey(split, index))
        write(root / "food-101" / "meta" / f"{split}.json", json.dumps(listed))
    write(root / "food-101.tar.gz", "archive")


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "mnist": lambda root, _: make_mnist(root, "MNIST"),
    "fashion_mnist": lambda root, _: make_mnist(root, "FashionMNIST"),
    "kmnist": lambda root, _: make_mnist(root, "KMNIST"),
    "svhn": make_svhn,
    "stl10": make_stl10,
    "flowers102": make_flowers,
    "oxford_pets": lambda root, _: make_pets(root),
    "fgvc_aircraft": lambda root, _: make_aircraft(root),
    "food101": lambda root, _: make_food(root),
}
ARCHIVES = {
    "mnist": [f"MNIST/raw/{s}-{k}-ubyte.gz" for s in ("t10k", "train") for k in ("images-idx3", "labels-idx1")],
    "svhn": ["test_32x32.mat", "train_32x32.mat"],
    "stl10": ["stl10_binary.tar.gz"],
    "flowers102": [f"flowers-102/{name}" for name in ("102flowers.tgz", "imagelabels.mat", "setid.mat")],
    "oxford_pets": ["oxford-iiit-pet/images.tar.gz"],
    "fgvc_aircraft": ["fgvc-aircraft-2013b.tar.gz"],
    "food101": ["food-101.tar.gz"],
}
ARCHIVES["fashion_mnist"] = [name.replace("MNIST", "FashionMNIST") for name in ARCHIVES["mnist"]]
ARCHIVES["kmnist"] = [name.replace("MNIST", "KMNIST") for name in ARCHIVES["mnist"]]


@pytest.mark.parametrize("name", MAKERS)
def test_images_labels_and_archives(name: str, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = data_root / name
    MAKERS[name](root, monkeypatch)
    source = opened(f"torchvision:{name}")
    for split, labels in (("train", source.train), ("test", source.evaluation)):
        assert labels.labels[:10].tolist() == SPLITS[split]
        assert shades(labels)[:10] == greys(split).tolist()
    assert len(source.class_names) == len(source.train.labels) == (102 if name == "flowers102" else 10)
    recorded = json.loads((root / "SHA256.json").read_text())
    assert recorded == {
        archive: hashlib.sha256((root / archive).read_bytes()).hexdigest() for archive in sorted(ARCHIVES[name])
    }
    again = opened(f"timm:torch/{name}")
    assert (again.name, again.train.content_hash) == (name, source.train.content_hash)


def test_rows_columns_and_channels_keep_their_places(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_svhn(data_root / "svhn", monkeypatch)
    image = opened("torchvision:svhn").train.read(0)
    assert image.getpixel((5, 2)) == (0, 77, 0)
    assert image.getpixel((2, 5)) == (0, 0, 0)


def test_an_archive_that_changed_since_its_first_use_is_refused(data_root: Path) -> None:
    make_food(data_root / "food101")
    archive = data_root / "food101" / "food-101.tar.gz"
    opened("torchvision:food101")
    write(archive, "another")
    with pytest.raises(
        DataError, match=rf"{archive}: SHA-256 is .*, at first use it was .*; delete {archive.parent} to"
    ):
        opened("torchvision:food101")
    archive.unlink()
    opened("torchvision:food101")


def test_cifar_is_never_taken_from_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "vitutor_core.data.sources.vision.cifar_source", lambda name, _: asked.append(name) or opened("digits")
    )
    for name in ("torchvision:cifar10", "timm:torch/cifar100"):
        opened(name)
    assert asked == ["cifar10", "cifar100"]


def test_a_pickled_cache_is_refused(data_root: Path) -> None:
    cache = write(data_root / "mnist" / "MNIST" / "processed" / "training.pt", "pickle")
    with pytest.raises(DataError, match=rf"{cache}: a cache of an old torchvision, which is not loaded; delete"):
        opened("torchvision:mnist")


def test_unknown_names_and_failed_downloads(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"no torchvision:fashionmnist; did you mean 'fashion_mnist'\?; valid: cifar10"
    ):
        opened("torchvision:fashionmnist")
    monkeypatch.setattr(datasets.SVHN, "split_list", {"train": [(data_root / "no").as_uri(), "x.mat", "0"], "test": []})
    with pytest.raises(DataError, match=rf"{data_root}/svhn: torchvision cannot open SVHN: .*; check the network"):
        opened("torchvision:svhn")


# --- timm


def test_timms_names_for_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("vitutor_core.data.sources.parquet.hub_folder", asked.append)
    monkeypatch.setattr("vitutor_core.data.sources.parquet.parquet_source", lambda *_: opened("digits"))
    opened("timm:hfds/owner/bugs")
    assert asked == ["owner/bugs"]


def test_what_timm_cannot_give() -> None:
    for name, message in {
        "tfds/mnist": "can only be streamed",
        "hfid/x": r"no reader 'hfid'; did you mean 'hfds'\?",
        "torch/mnst": "did you mean 'mnist'",
        "nowhere": r"no folder .*nowhere, and no reader 'nowhere'",
    }.items():
        with pytest.raises(ConfigError, match=message):
            opened(f"timm:{name}")


def test_a_folder_given_to_timm_is_read_by_the_folder_source(data_root: Path) -> None:
    for split in ("train", "val"):
        picture(data_root / "pets" / split / "cat" / "a.png", 3)
    assert opened("timm:pets").name == "folder:pets"
