"""Evaluation on held-out training images: stratified, keyed, disjoint, of any source, seen by the fingerprint."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.tests.source_samples import shades
from core.tests.test_parquet import write_shard
from vitutor_core.data.build import build_data
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import fingerprint
from vitutor_core.data.types import Source, Split
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.jobs import teacher
from vitutor_core.schema import DataConfig, RunConfig, TeacherConfig

pytestmark = pytest.mark.usefixtures("data_root")
COUNTS = (10, 7, 3)
NAMES = ["ant", "bee", "cat"]


@pytest.fixture
def sources(data_root: Path) -> dict[str, str]:
    """Sets of 10, 7 and 3 training images, told apart by their shade; that of an evaluation image is above 100."""
    labels = [label for label, count in enumerate(COUNTS) for _ in range(count)]
    for number, label in enumerate(labels):
        for split, shade in (("train", number), ("val", number + 100)):
            path = data_root / "pets" / split / NAMES[label] / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (shade,) * 3).save(path)
    for folder in ("bugs", "someone/bugs"):
        write_shard(data_root / folder / "train-00000-of-00002.parquet", labels[:12], [*range(12)], names=NAMES)
        write_shard(data_root / folder / "train-00001-of-00002.parquet", labels[12:], [*range(12, 20)], names=NAMES)
        write_shard(data_root / folder / "test-00000-of-00001.parquet", [0, 1, 2], [100, 101, 102], names=NAMES)
    return {"folder": "folder:pets", "timm": "timm:pets", "parquet": "parquet:bugs", "hub": "hub:someone/bugs"}


def opened(source: str, **fields: object) -> Source:
    return open_source(DataConfig(source=source, image_size=8, **fields))


def pixels(split: Split) -> list[tuple[bytes, int]]:
    read = (np.asarray(split.read(index)).tobytes() for index in range(len(split.labels)))
    return list(zip(read, split.labels.tolist(), strict=True))


@pytest.mark.parametrize("kind", ["folder", "timm", "parquet", "hub"])
def test_both_parts_are_training_images_stratified_disjoint_and_complete(sources: dict[str, str], kind: str) -> None:
    whole, held = opened(sources[kind]), opened(sources[kind], holdout=0.3)
    assert np.bincount(held.evaluation.labels).tolist() == [3, 2, 1]  # of a class of 3, at least one
    assert np.bincount(held.train.labels).tolist() == [7, 5, 2]
    assert shades(held.train) == sorted(shades(held.train))
    assert shades(held.evaluation) == sorted(shades(held.evaluation))
    assert sorted(pixels(held.train) + pixels(held.evaluation)) == sorted(pixels(whole.train))
    index = shades(held.evaluation)[2]
    assert held.evaluation.where(2) == whole.train.where(index)
    assert held.name == f"{whole.name}, holdout 0.3"


def test_every_source_holds_out_the_same_images_and_the_draw_is_pinned(sources: dict[str, str]) -> None:
    found = {tuple(shades(opened(source, holdout=0.3).evaluation)) for source in sources.values()}
    # another draw would change every number that was measured on it
    assert found == {(5, 6, 8, 10, 12, 19)}


@pytest.mark.parametrize("source", ["digits", "folder:pets", "parquet:bugs"])
def test_share_seed_and_holdout_itself_are_in_the_fingerprint(sources: dict[str, str], source: str) -> None:
    choices = ({}, {"holdout": 0.3}, {"holdout": 0.5}, {"holdout": 0.3, "holdout_seed": 1})
    found = [opened(source, **fields) for fields in choices]
    prints = {fingerprint(source, np.arange(4)) for source in found}
    assert len(prints) == 4
    assert len({source.evaluation.content_hash for source in found}) == 4
    assert opened(source, holdout=0.3).train.content_hash == found[1].train.content_hash
    settings = [[], ["data.holdout=0.3"], ["data.holdout=0.3", "data.holdout_seed=1"]]
    assert len({config().changed(changes).fingerprint() for changes in settings}) == 3


def test_digits_keep_their_evaluation_half_out_of_the_choice() -> None:
    whole, held = opened("digits"), opened("digits", holdout=0.2)
    assert len(held.evaluation.labels) == sum(count // 5 for count in np.bincount(whole.train.labels))
    assert set(pixels(held.evaluation)) <= set(pixels(whole.train))


def test_shares_are_nested_and_seeds_differ(sources: dict[str, str]) -> None:
    held = [set(shades(opened("folder:pets", holdout=share).evaluation)) for share in (0.1, 0.3, 0.7)]
    assert held[0] < held[1] < held[2]
    assert shades(opened("folder:pets", holdout=0.3, holdout_seed=1).evaluation) != sorted(held[1])


def test_a_class_keeps_its_held_out_images_in_a_class_list(sources: dict[str, str]) -> None:
    whole = opened("parquet:bugs", holdout=0.3)
    part = opened("parquet:bugs", holdout=0.3, class_list=("bee", "cat"))
    for all_, some in ((whole.train, part.train), (whole.evaluation, part.evaluation)):
        kept = np.flatnonzero(all_.labels > 0)
        assert shades(some) == [shades(all_)[index] for index in kept]
        assert some.labels.tolist() == (all_.labels[kept] - 1).tolist()


def test_other_training_images_leave_the_held_out_ones_alone(sources: dict[str, str], data_root: Path) -> None:
    shutil.copytree(data_root / "pets" / "val", data_root / "made" / "train")
    held = opened("folder:pets", holdout=0.3)
    made = opened("folder:pets", holdout=0.3, train_from="made")
    assert shades(made.train) == [*range(100, 120)]
    assert made.evaluation.content_hash == held.evaluation.content_hash


def test_single_images_and_wrong_shares_are_refused(sources: dict[str, str], data_root: Path) -> None:
    for number in (18, 19):
        (data_root / "pets" / "train" / "cat" / f"{number}.png").unlink()
    with pytest.raises(
        DataError, match=r"data\.holdout: .* image of cat, .* needs two; add one, remove the class, or .*val/"
    ):
        opened("folder:pets", holdout=0.3)
    for share in ("0", "1", "1.5", "-0.1", "20%", "yes"):
        with pytest.raises(ConfigError, match=r"data\.holdout"):
            config().changed([f"data.holdout={share}"])


def config(**data: object) -> RunConfig:
    values = {
        "data": {"image_size": 8, "source": "folder:pets", **data},
        "student": {"name": "resnet8_tiny"},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 2},
        "runtime": {"workers": 0},
    }
    return RunConfig.from_mapping(values, where="test")


@pytest.mark.parametrize("loader", ["resident", "streamed"])
@pytest.mark.parametrize("source", ["folder:pets", "parquet:bugs"])
def test_runs_train_on_one_part_and_are_evaluated_on_the_other(
    sources: dict[str, str], source: str, loader: str
) -> None:
    data = build_data(config(source=source, holdout=0.3, fraction=0.5, loader=loader), device=torch.device("cpu"))
    assert (data.info.num_train, data.info.num_eval) == (6, 6)

    def seen(batches: list[torch.Tensor]) -> set[int]:
        levels = torch.cat([images[:, 0, 0, 0] for images in batches]) * data.info.std[0] + data.info.mean[0]
        return set((levels * 255).round().int().tolist())

    trained = seen([batch.images for micro_batches in data.train.epoch(0) for batch in micro_batches])
    evaluated = seen([images for images, _ in data.evaluation])
    data.train.close()
    assert evaluated == {5, 6, 8, 10, 12, 19}
    assert trained <= set(range(20)) - evaluated


def test_a_teacher_does_not_see_what_its_student_is_evaluated_on(
    sources: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(teacher, "train_teacher", lambda *_, settings, **__: given.append(settings))

    monkeypatch.setattr(teacher, "teachers_of", lambda _: [("student", TeacherConfig(recipe="cnn"))])
    teacher.with_teachers(config(holdout=0.3, holdout_seed=5), "digits", tmp_path)
    assert {"data.holdout=0.3", "data.holdout_seed=5"} <= set(given[0])
