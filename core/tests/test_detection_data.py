from __future__ import annotations

import itertools
import json
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from conformance import forked
from core.tests.detection_samples import few_scenes, tiny_config, write_few
from vitutor_core.cli.vitutor import vitutor
from vitutor_core.data.build import build_data
from vitutor_core.data.detection import scenes
from vitutor_core.data.detection.annotated import box_of, encode, mask_of
from vitutor_core.data.detection.coco import coco_source, write_coco
from vitutor_core.data.detection.open import usable
from vitutor_core.data.detection.scenes import scenes_source
from vitutor_core.data.detection.view import View, draw_views, see, see_mask, whole
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.data.sources.digits import digits_source
from vitutor_core.data.sources.scenes import load_photographs
from vitutor_core.errors import ConfigError, DataError

CPU = torch.device("cpu")


def test_scenes_are_the_same_every_time():
    source = scenes_source()
    assert (len(source.train), len(source.evaluation)) == (256, 128)
    photographs = load_photographs()[:, :, :320]
    again = scenes._split(0, 5, digits_source().train, photographs)
    assert again.annotations == source.train.annotations[:5]
    assert all(again.read(index).tobytes() == source.train.read(index).tobytes() for index in range(5))


def test_scenes_share_no_digit_and_no_photograph_between_the_splits():
    seen = []
    real = scenes._split
    with mock.patch.object(scenes, "_split", lambda *parts: seen.append(parts) or real(parts[0], 2, *parts[2:])):
        scenes_source.__wrapped__()
    (_, _, train, left), (_, _, evaluation, right) = seen
    images = [{split.read(index).tobytes() for index in range(len(split.labels))} for split in (train, evaluation)]
    assert not images[0] & images[1]
    whole_photographs = load_photographs()
    assert np.array_equal(np.concatenate([left, right], axis=2), whole_photographs)


def test_the_masks_of_a_scene_are_apart_and_their_boxes_fit():
    split = scenes_source().train
    for index in range(40):
        objects = list(split.objects(index))
        assert objects
        for annotation, mask in objects:
            left, top, right, bottom = box_of(mask)
            assert annotation["bbox"] == [left, top, right - left, bottom - top]
            assert annotation["area"] == mask.sum()
            assert mask.shape == (96, 96)
        assert not any((one & other).any() for (_, one), (_, other) in itertools.combinations(objects, 2))


def test_masks_survive_the_run_length_code():
    generator = np.random.default_rng(0)
    for share, shape in itertools.product((0.0, 0.02, 0.5, 1.0), ((1, 1), (7, 5), (96, 96))):
        mask = generator.random(shape) < share
        assert np.array_equal(mask_of(encode(mask), shape[1], shape[0], where="here"), mask)


def test_scenes_come_back_from_the_disk(tmp_path):
    written = few_scenes()
    write_coco(written, tmp_path / "coco")
    read = coco_source(str(tmp_path / "coco"))
    assert read.class_names == written.class_names
    for one, other in ((written.train, read.train), (written.evaluation, read.evaluation)):
        assert one.annotations == other.annotations
        for index in range(len(one)):
            assert one.read(index).tobytes() == other.read(index).tobytes()


def test_polygons_and_runs_are_read_to_the_pixel():
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 4.0, 2.0, 4.0]]
    expected = np.zeros((5, 8), dtype=bool)
    expected[1:4, 2:6] = True
    assert np.array_equal(mask_of(square, 8, 5, where="here"), expected)
    runs = {"size": [5, 8], "counts": [11, 3, 2, 3, 2, 3, 2, 3, 11]}
    assert np.array_equal(mask_of(runs, 8, 5, where="here"), expected)


# What is wrong, and words of the one line that says so.
MISTAKES = {
    "annotation 1: no category has the id 99": lambda data: data["annotations"][0].update(category_id=99),
    "annotation 1: no image has the id 'x'": lambda data: data["annotations"][0].update(image_id="x"),
    "annotation 1: no image has the id [1]": lambda data: data["annotations"][0].update(image_id=[1]),
    "no image has the id 1.0": lambda data: data["annotations"][0].update(image_id=1.0),
    "no category has the id ['x']": lambda data: data["annotations"][0].update(category_id=["x"]),
    "bbox is [1, 2, 3]; four numbers": lambda data: data["annotations"][0].update(bbox=[1, 2, 3]),
    "bbox is [NaN, 0, 1, 1]; four numbers": lambda data: data["annotations"][0].update(bbox=[float("nan"), 0, 1, 1]),
    "neither polygons nor a run-length code": lambda data: data["annotations"][0].update(segmentation=[]),
    "neither polygons nor": lambda data: data["annotations"][0].update(segmentation=[[0, 0, 1e6, 0, 0, 1e6]]),
    "annotation 1: a mask cannot be decoded": lambda data: data["annotations"][0].update(
        segmentation={"size": [96, 96], "counts": "zzz"}
    ),
    "1: a mask cannot": lambda data: data["annotations"][0]["segmentation"].update(counts=[5, 3]),
    "a mask cannot be decoded ('counts')": lambda data: data["annotations"][0]["segmentation"].pop("counts"),
    "its mask is not of an image of 96 x 96 pixels": lambda data: data["annotations"][0]["segmentation"].update(
        size=[96, 95]
    ),
    "iscrowd is 2; it is 0 or 1": lambda data: data["annotations"][0].update(iscrowd=2),
    'area is "large"; a number': lambda data: data["annotations"][0].update(area="large"),
    "no list 'categories'": lambda data: data.pop("categories"),
    "no list 'images'": lambda data: data.update(images=3),
    "it has 0 images": lambda data: data.update(images=[], annotations=[]),
    "images: the id 2 is given twice": lambda data: data["images"][0].update(id=2),
    "images: not an entry of COCO's": lambda data: data["images"][0].update(file_name="../secret.png"),
    "images: not an entry": lambda data: data["images"][0].update(width=10**6, height=10**6),
    "two categories have the same name": lambda data: data["categories"][0].update(name="1"),
    "different categories": lambda data: data["categories"][0].update(name="zero"),
    "no such file": lambda data: data["images"][0].update(file_name="missing.png"),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_annotations_is_one_line(tmp_path, message):
    folder = write_few(tmp_path / "coco", MISTAKES[message])
    with pytest.raises(DataError) as caught:
        coco_source(str(folder))
    assert message.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "\xff", "[" * 100_000, "{}"])
def test_broken_json_is_one_line(tmp_path, text):
    folder = write_few(tmp_path / "coco")
    (folder / "annotations" / "instances_val.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"instances_val.json: (not valid JSON|no list 'images')") as caught:
        coco_source(str(folder))
    assert "\n" not in str(caught.value)


def test_a_folder_in_another_layout_is_named(tmp_path):
    folder = write_few(tmp_path / "coco")
    with pytest.raises(DataError, match="no such folder"):
        coco_source(str(tmp_path / "missing"))
    annotations = folder / "annotations"
    (annotations / "instances_val2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"instances_val.json, instances_val2017.json; keep one"):
        coco_source(str(folder))
    (annotations / "instances_val2017.json").unlink()
    (folder / "val").rename(folder / "images")
    with pytest.raises(DataError, match=r"no folder .*val or .*val with its images"):
        coco_source(str(folder))
    (annotations / "instances_val.json").unlink()
    with pytest.raises(DataError, match=r"no annotations/instances_val\*\.json"):
        coco_source(str(folder))


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    folder = write_few(tmp_path / "coco")
    Image.new("RGB", (50, 40)).save(folder / "train" / "000000.png")
    with pytest.raises(DataError, match="50 x 40 pixels, and its annotations are for 96 x 96"):
        coco_source(str(folder)).train.read(0)


def test_crowds_objects_outside_and_empty_images_are_not_trained_on(tmp_path):
    def change(data):
        of_first = [entry for entry in data["annotations"] if entry["image_id"] == 1]
        for entry in of_first:
            entry["iscrowd"] = 1
        data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != 2]
        outside = next(entry for entry in data["annotations"] if entry["image_id"] == 3)
        outside.update(bbox=[200, 200, 20, 20], segmentation=[[200, 200, 220, 200, 220, 220]])

    source = coco_source(str(write_few(tmp_path / "coco", change)))
    assert usable(source.train).tolist() == [2, 3, 4, 5, 6, 7]
    assert not list(source.train.objects(0))
    assert len(list(source.train.objects(2))) == len(source.train.annotations[2]) - 1


def test_a_training_split_without_objects_is_refused(tmp_path):
    folder = write_few(tmp_path / "coco", lambda data: data.update(annotations=[]))
    with pytest.raises(DataError, match="no image of the training split has an object"):
        build_data(tiny_config(f"data.source=coco:{folder}"), device=CPU)


def test_without_the_optional_package_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['faster_coco_eval'] = None\n"
        "from vitutor_core.data.detection.annotated import masks_module\n"
        "from vitutor_core.errors import ConfigError\n"
        "try: masks_module()\nexcept ConfigError as error: print(error)"
    )
    printed = forked.run(code, check=True).stdout
    assert printed == "detection needs faster-coco-eval; pip install 'vitutor-core[detect]'\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.fraction=0.5", "data.fraction: is not for images with boxes"),
        ("augment.mixup=0.8", "augment.mixup: is not for images with boxes"),
        ("data.source=coco:", "'coco:' has no boxes and masks"),
        ("train.batch_size=1000", "larger than an epoch of 256 images"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        build_data(tiny_config(setting), device=CPU)


def test_a_classifier_is_told_that_scenes_are_for_detection():
    from core.tests.train_samples import tiny_config as classifier

    with pytest.raises(ConfigError, match="`vitutor detect` trains on them"):
        build_data(classifier("data.source=scenes", "data.per_class=null"), device=CPU)


# Views


def test_a_view_of_the_whole_image_is_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    square = see(image, whole(60, 40, 60), 60, (1, 2, 3))
    assert np.array_equal(square[:40], np.asarray(image))
    assert (square[40:] == (1, 2, 3)).all()


def test_an_image_and_its_mask_are_seen_alike():
    # The mask is the bright part of the image: wherever both are far from an edge, they must agree.
    bright = np.zeros((50, 70), dtype=bool)
    bright[10:35, 15:60] = True
    image = Image.fromarray(np.repeat(bright[:, :, None], 3, axis=2).astype(np.uint8) * 255)
    keys = SampleKeys(0, 0, np.arange(30), np.zeros(30, dtype=np.int64))
    for view in draw_views(keys, np.full((30, 2), (70, 50)), 48, (0.3, 2.0), 0.5):
        pixels, mask = see(image, view, 48, (0, 0, 0))[:, :, 0], see_mask(bright, view, 48)
        # Away from edges of the bright part, where all that a pixel was made of is equal, the two agree.
        clear = (pixels == 0) | (pixels == 255)
        assert np.array_equal((pixels == 255)[clear], mask[clear])
        assert clear.mean() > 0.8


def test_views_follow_their_key_and_reach_all_of_the_range():
    keys = SampleKeys(3, 5, np.arange(2000), np.zeros(2000, dtype=np.int64))
    sizes = np.tile([[640, 480]], (2000, 1))
    views = draw_views(keys, sizes, 640, (0.1, 2.0), 0.5)
    assert views == draw_views(keys, sizes, 640, (0.1, 2.0), 0.5)
    alone = SampleKeys(3, 5, np.array([7]), np.zeros(1, dtype=np.int64))
    assert views[7:8] == draw_views(alone, sizes[:1], 640, (0.1, 2.0), 0.5)
    widths = [view.size[0] for view in views]
    assert min(widths) < 70
    assert max(widths) > 1270
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55
    for view in views:
        for begin, length in ((view.left, view.size[0]), (view.top, view.size[1])):
            assert 0 <= begin <= max(length - 640, 0)
    places = [view.left / (view.size[0] - 640) for view in views if view.size[0] > 1200]
    assert min(places) < 0.05
    assert max(places) > 0.95


def test_a_flip_mirrors_image_and_mask():
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    image, mask = Image.fromarray(pixels), pixels[:, :, 0] > 127
    view = View((20, 20))
    assert np.array_equal(see(image, view._replace(flip=True), 20, (0, 0, 0)), see(image, view, 20, (0, 0, 0))[:, ::-1])
    assert np.array_equal(see_mask(mask, view._replace(flip=True), 20), mask[:, ::-1])


# Loaders


def batches(*settings, epoch=0, start=0, **place):
    data = build_data(tiny_config(*settings), device=CPU, **place)
    try:
        return [micro for step in itertools.islice(data.train.epoch(epoch, start_step=start), 3) for micro in step]
    finally:
        data.train.close()


def equal(one, other):
    return torch.equal(one.images, other.images) and all(
        torch.equal(a, b)
        for mine, yours in zip(one.objects, other.objects, strict=True)
        for a, b in zip(mine, yours, strict=True)
    )


def test_batches_are_the_same_with_workers_and_after_a_resumption():
    plain = batches()
    assert all(map(equal, plain, batches("data.loader=streamed", "runtime.workers=2")))
    assert equal(batches(start=2)[0], plain[2])
    assert not equal(batches(epoch=1)[0], plain[0])


def test_two_processes_share_the_batches_of_one():
    whole_batch = batches("train.batch_size=8")[0]
    halves = [batches("train.batch_size=8", rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert torch.equal(whole_batch.indices[0::2], halves[0].indices)
    assert torch.equal(whole_batch.images[1::2], halves[1].images)


def test_objects_lie_in_their_batch():
    for batch in batches():
        assert batch.images.shape == (4, 3, 48, 48)
        assert len(batch.objects) == 4
        for boxes, labels, masks in batch.objects:
            assert len(boxes) == len(labels) == len(masks)
            for box, mask in zip(boxes, masks, strict=True):
                assert tuple(box.tolist()) == box_of(mask.bool().numpy())
            assert ((boxes >= 0) & (boxes <= 48)).all()
            assert (labels < 10).all()


def test_evaluation_shows_every_image_once():
    numbers = []
    for rank in (0, 1):
        data = build_data(tiny_config(), device=CPU, rank=rank, world_size=2)
        numbers += [number for _, indices in data.evaluation for number in indices.tolist()]
    assert sorted(numbers) == list(range(128))


# vitutor data


def test_a_source_is_checked_and_what_is_not_trained_on_is_said(tmp_path, call):
    def change(data):
        data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] != 2]
        data["annotations"][0]["iscrowd"] = 1
        data["annotations"][-1].update(bbox=[200, 200, 20, 20], segmentation=[[200, 200, 220, 200, 220, 220]])

    folder = write_few(tmp_path / "coco", change)
    code, printed, _ = call(vitutor, "data", "--source", f"coco:{folder}", "--out", tmp_path / "manifest.json")
    assert code == 0
    assert "train               8 images, 0-4 per class" in printed
    assert "training: 1 images without an object" in printed
    assert "training: 1 crowd regions, which are not trained on" in printed
    assert "training: 1 objects without a pixel in their image, which are not trained on" in printed
    assert json.loads((tmp_path / "manifest.json").read_text())["classes"] == [str(digit) for digit in range(10)]
    (folder / "train" / "000003.png").write_bytes(b"not an image")
    code, _, messages = call(vitutor, "data", "--source", f"coco:{folder}")
    assert (code, messages.count("\n")) == (3, 1)
    assert "000003.png: cannot read the image" in messages


def test_scenes_are_written_in_cocos_layout(tmp_path, call):
    with mock.patch("vitutor_core.data.detection.open.scenes_source", return_value=few_scenes()):
        code, printed, messages = call(vitutor, "data", "--source", "scenes", "--coco", tmp_path / "out")
    assert code == 0, messages
    assert f"coco:{tmp_path / 'out'}" in printed
    assert len(coco_source(str(tmp_path / "out")).train) == 8
    code, printed, messages = call(vitutor, "data", "--source", "digits", "--coco", tmp_path / "out")
    assert (code, printed) == (2, "")  # said before the images are checked
    assert "'digits' has no boxes and masks" in messages


def test_a_source_that_is_checked_and_written_is_opened_once(tmp_path, call, monkeypatch):
    folder, opened = write_few(tmp_path / "coco"), []
    monkeypatch.setattr(
        "vitutor_core.data.detection.open.coco_source", lambda path: opened.append(path) or coco_source(path)
    )
    assert call(vitutor, "data", "--source", f"coco:{folder}", "--coco", tmp_path / "out")[0] == 0
    assert opened == [str(folder)]
    assert coco_source(str(tmp_path / "out")).train.sizes.shape == coco_source(str(folder)).train.sizes.shape
