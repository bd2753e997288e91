"""The columns that shards of images come with: their names, how images and labels are stored, labels without names."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.tests.source_samples import shades
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Source
from vitutor_core.errors import DataError
from vitutor_core.schema import DataConfig

SHADES = [1, 2, 3, 4]


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (3, 2), shade).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, **splits: dict[str, pa.Array]) -> None:
    for split, columns in splits.items():
        (root / "bugs").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), root / "bugs" / f"{split}.parquet")


def images(kind: pa.DataType | None = None) -> pa.Array:
    return pa.array([encoded(shade) for shade in SHADES], kind or pa.binary())


def structs() -> pa.Array:
    return pa.array([{"bytes": encoded(shade), "path": f"{shade}.png"} for shade in SHADES])


def opened(**fields: object) -> Source:
    return open_source(DataConfig(source="parquet:bugs", image_size=8, **fields))


def dictionary(values: list[object]) -> pa.Array:
    return pa.array(values).dictionary_encode()


@pytest.mark.parametrize("image", ["image", "img", "pixel_values", "jpg"])
@pytest.mark.parametrize("label", ["label", "labels", "target", "fine_label", "cls"])
def test_common_names(data_root: Path, image: str, label: str) -> None:
    columns = {"id": SHADES, label: [0, 1, 1, 0], image: structs()}
    write(data_root, train=columns, test=columns)
    source = opened()
    assert shades(source.train) == shades(source.evaluation) == SHADES
    assert source.train.labels.tolist() == [0, 1, 1, 0]


def test_named_columns_come_first(data_root: Path) -> None:
    columns = {"image": structs(), "photo": images(), "label": [0, 1, 1, 0], "species": ["x", "y", "z", "x"]}
    write(data_root, train=columns, test=columns)
    source = opened(image_column="photo", label_column="species")
    assert source.class_names == ("x", "y", "z")
    assert opened().class_names == ("0", "1")
    assert source.train.content_hash == opened().train.content_hash  # the config has the columns
    with pytest.raises(DataError, match=r"no column 'foto'; set data\.image_column to one of image, photo, label"):
        opened(image_column="foto")
    with pytest.raises(DataError, match="column 'label' must hold the bytes of images, found int64"):
        opened(image_column="label")
    with pytest.raises(DataError, match="column 'photo' must hold classes, as numbers or by name, found binary"):
        opened(label_column="photo")


@pytest.mark.parametrize(
    "stored",
    [images(), images(pa.large_binary()), structs(), structs().cast(pa.struct({"bytes": pa.large_binary()}))],
    ids=lambda array: str(array.type),
)
def test_how_images_are_stored(data_root: Path, stored: pa.Array) -> None:
    write(data_root, train={"image": stored, "label": [0, 1, 1, 0]}, test={"image": stored, "label": [0, 1, 1, 0]})
    assert shades(opened().train) == SHADES


@pytest.mark.parametrize(
    ("stored", "names", "labels"),
    [
        (["cat", "ant", "bee", "ant"], ("ant", "bee", "cat"), [2, 0, 1, 0]),
        (dictionary(["cat", "ant", "bee", "ant"]), ("ant", "bee", "cat"), [2, 0, 1, 0]),
        (pa.array(["cat", "ant", "bee", "ant"], pa.large_string()), ("ant", "bee", "cat"), [2, 0, 1, 0]),
        (["10", "9", "9", "10"], ("10", "9"), [0, 1, 1, 0]),
        (dictionary([2, 0, 1, 0]), ("0", "1", "2"), [2, 0, 1, 0]),
        (pa.array([2, 0, 1, 0], pa.uint8()), ("0", "1", "2"), [2, 0, 1, 0]),
        ([True, False, False, True], ("0", "1"), [1, 0, 0, 1]),
    ],
    ids=str,
)
def test_how_labels_are_stored(data_root: Path, stored: object, names: tuple[str, ...], labels: list[int]) -> None:
    write(data_root, train={"image": structs(), "label": stored}, test={"image": structs(), "label": stored})
    source = opened()
    assert (source.class_names, source.train.labels.tolist()) == (names, labels)
    assert source.evaluation.labels.tolist() == labels


def test_names_of_the_evaluation_split_are_those_of_training(data_root: Path) -> None:
    write(
        data_root,
        train={"image": structs(), "label": ["cat", "ant", "bee", "ant"]},
        test={"image": structs(), "label": ["bee", "bee", "cat", "cat"]},
    )
    with pytest.warns(UserWarning, match="no evaluation images of ant"):
        assert opened().evaluation.labels.tolist() == [1, 1, 2, 2]
    write(data_root, test={"image": structs(), "label": ["bee", "Bee", "cat", "cat"]})
    with pytest.raises(DataError, match=r"test\.parquet, row 1: class 'Bee', which train does not have"):
        opened()


def test_labels_from_one_are_explained(data_root: Path) -> None:
    columns = {"image": structs(), "label": [1, 2, 3, 1]}
    write(data_root, train=columns, test=columns)
    with pytest.warns(UserWarning, match="labels begin at 1; class 0 is that of label 1"):
        source = opened()
    assert source.class_names == ("1", "2", "3")
    assert source.train.labels.tolist() == source.evaluation.labels.tolist() == [0, 1, 2, 0]
    named = pa.table(columns).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"label": {"names": ["a", "b", "c"]}}}}'}
    )
    for split in ("train", "test"):
        pq.write_table(named, data_root / "bugs" / f"{split}.parquet")
    with pytest.raises(DataError, match=r"row 0: the labels are 1 to 3, not 0 to 2; subtract 1 from each"):
        opened()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2**40, 1], "row 2: label 1099511627776 after 1; without class names, labels are 0, 1, 2"),
        ([0, 1, 3, 1], "row 2: label 3 after 1"),
        ([5, 6, 7, 8], "row 0: label 5 as the first"),
        ([0, -1, -1, 1], "row 1: label -1 as the first"),
        ([2**63 - 1, 0, 1, -(2**63)], "label -9223372036854775808 as the first"),
    ],
)
def test_labels_that_are_no_classes_cost_no_memory(data_root: Path, labels: list[int], message: str) -> None:
    write(data_root, train={"image": structs(), "label": labels}, test={"image": structs(), "label": labels})
    with pytest.raises(DataError, match=message):
        opened()


def test_shards_of_one_split_agree(data_root: Path) -> None:
    for name, labels in {"train-0": [0, 1, 1, 0], "test": [0, 1, 1, 0], "train-1": ["a", "b", "b", "a"]}.items():
        write(data_root, **{name: {"image": structs(), "label": labels}})
    with pytest.raises(DataError, match=r"train-1\.parquet: its columns or classes are not those of .*train-0"):
        opened()
