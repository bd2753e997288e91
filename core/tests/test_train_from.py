"""Training images from a folder, evaluation from the source: what `dearkd generate` makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.source_samples import shades
from vitutor_core.data.build import build_data
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source
from vitutor_core.errors import DataError
from vitutor_core.jobs.reproduce import inputs_of
from vitutor_core.schema import DataConfig, RunConfig


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Two images of each digit, but three of the first; shades tell classes apart."""
    for digit in range(10):
        for number in range(3 if digit == 0 else 2):
            path = tmp_path / "made" / "train" / str(digit) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * digit + number,) * 3).save(path)
    return tmp_path / "made"


def opened(folder: Path, source: str = "digits") -> Source:
    return open_source(DataConfig(source=source, image_size=16, train_from=str(folder)))


def test_training_images_come_from_the_folder_and_evaluation_from_the_source(made: Path) -> None:
    source, real = opened(made), open_source(DataConfig(source="digits", image_size=16))
    assert shades(source.train) == [0, 1, 2, *(20 * digit + number for digit in range(1, 10) for number in range(2))]
    assert source.train.labels.tolist() == [0, 0, 0, *(digit for digit in range(1, 10) for _ in range(2))]
    assert source.evaluation.content_hash == real.evaluation.content_hash
    assert (source.name, source.mean, source.std, source.class_names) == (
        real.name,
        real.mean,
        real.std,
        real.class_names,
    )


def test_labels_follow_the_names_of_the_source(made: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("zebra", "ant"):
            path = tmp_path / "animals" / split / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(path)
    source = open_source(DataConfig(source=f"folder:{tmp_path / 'animals'}", image_size=8))
    with pytest.raises(DataError, match=r"made/train: classes that data.source does not have: 0, 1, 2"):
        opened(made, f"folder:{tmp_path / 'animals'}")
    again = opened(tmp_path / "animals", f"folder:{tmp_path / 'animals'}")
    assert again.train.labels.tolist() == source.train.labels.tolist() == [0, 1]


def test_a_class_without_images_and_a_missing_folder_are_refused(made: Path, tmp_path: Path) -> None:
    (made / "train" / "7" / "0.png").unlink()
    (made / "train" / "7" / "1.png").unlink()
    with pytest.raises(DataError, match="no training images of 7"):
        opened(made)
    with pytest.raises(DataError, match=r"nothing/train: no such folder .* a folder per class"):
        opened(tmp_path / "nothing")


def config(made: Path | None, **data: object) -> RunConfig:
    values = {
        "data": {"image_size": 16, "train_from": None if made is None else str(made), **data},
        "student": {"name": "resnet8_tiny"},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 4, "epoch_length": "full"},
    }
    return RunConfig.from_mapping(values, where="test")


def test_the_manifest_is_part_of_the_identity_and_the_path_is_not(made: Path, tmp_path: Path) -> None:
    def fingerprint(folder: Path | None) -> str:
        data = build_data(config(folder), device=torch.device("cpu"))
        data.train.close()
        assert data.info.num_eval == 896
        return data.info.fingerprint

    def key(folder: Path | None) -> str:
        return json.dumps(inputs_of(config(folder), "code", tmp_path))

    found, keys = {"real": fingerprint(None)}, {"real": key(None)}
    found["bare"] = fingerprint(made)
    for text in ("one", "two"):
        (made / "manifest.json").write_text(json.dumps({"images": [], "note": text}))
        found[text], keys[text] = fingerprint(made), key(made)
    assert len(set(found.values())) == 4
    assert len(set(keys.values())) == 3
    made.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == found["two"]
    assert config(made).fingerprint() == config(None).fingerprint()


def test_batches_subsets_and_epochs_are_of_the_folder(made: Path) -> None:
    data = build_data(config(made), device=torch.device("cpu"))
    assert (data.info.num_train, data.train.steps_per_epoch) == (21, 5)
    batches = [batch for micro_batches in data.train.epoch(0) for batch in micro_batches]
    levels = torch.cat([batch.images[:, 0, 0, 0] for batch in batches]) * data.info.std[0] + data.info.mean[0]
    labels = torch.cat([batch.targets for batch in batches])
    assert np.array_equal(((levels * 255).round().long() // 20).numpy(), labels.numpy())
    half = build_data(config(made, per_class=1), device=torch.device("cpu"))
    assert half.info.num_train == 10
