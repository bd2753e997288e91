from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from conformance import forked
from core.tests.detection_samples import few_scenes
from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit, Category, encode
from vitutor_core.data.detection.load import AnnotatedEvalLoader
from vitutor_core.data.sources.images import array_split
from vitutor_core.evaluate.detection import average_precision, coco_metrics, gather, in_images
from vitutor_core.schema import RuntimeConfig

CPU = torch.device("cpu")
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def perfect(source, score=1.0):
    return [
        {"image_id": number, "score": score} | {key: one[key] for key in ("category_id", "bbox", "segmentation")}
        for number, objects in enumerate(source.evaluation.annotations)
        for one in objects
    ]


def loader_of(source, side, rank=0, world=1):
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    own = np.arange(rank, len(source.evaluation), world)
    return AnnotatedEvalLoader(source, own, side, normalise, RuntimeConfig(workers=0, eval_batch_size=4), CPU)


def by_pycocotools(source, results):
    """Evaluate as detectron2 does with pycocotools."""
    split = source.evaluation
    truth = [{"image_id": n, **one} for n, objects in enumerate(split.annotations) for one in objects]
    data = {
        "images": [{"id": n, "width": int(w), "height": int(h)} for n, (w, h) in enumerate(split.sizes)],
        "annotations": [{"id": n + 1, **one} for n, one in enumerate(truth)],
        "categories": [{"id": c.id, "name": c.name} for c in source.categories],
    }
    found = {}
    for name, kind, other in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
        with contextlib.redirect_stdout(io.StringIO()):
            known = COCO()
            known.dataset = copy.deepcopy(data)
            known.createIndex()
            kept = [{key: value for key, value in one.items() if key != other} for one in results]
            evaluation = COCOeval(known, known.loadRes(copy.deepcopy(kept)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        found |= {f"{name}_{of}": 100 * v for of, v in zip(NAMES, evaluation.stats, strict=False) if v >= 0}
    return found


def test_perfect_predictions_have_100():
    source = few_scenes(evaluation=20)
    found = coco_metrics(source, perfect(source))
    assert found.pop("images") == 20
    assert {"box_ap", "mask_ap", "box_ap75", "mask_ap_small"} <= found.keys()
    assert all(value == pytest.approx(100, abs=1e-9) for value in found.values())


def test_nothing_found_has_0():
    assert coco_metrics(few_scenes(), [])["box_ap"] == 0


def shifted(source, pixels):
    """Move every object by some pixels, with scores that differ."""
    results = perfect(source)
    generator = np.random.default_rng(0)
    for result in results:
        left, top, width, height = result["bbox"]
        result["bbox"] = [left + pixels, top, width, height]
        moved = np.zeros((96, 96), dtype=bool)
        right, bottom = min(left + pixels + width, 96), top + height
        moved[top:bottom, left + pixels : right] = True
        result["segmentation"] = encode(moved)
        result["score"] = round(float(generator.random()), 1)  # with ties
        if generator.random() < 0.1:
            result["category_id"] = int(generator.integers(1, 11))
    return results


@pytest.mark.parametrize("pixels", [0, 1, 2, 4])
def test_shifted_boxes_and_masks_have_what_pycocotools_says(pixels):
    source = few_scenes(evaluation=30)
    results = shifted(source, pixels)
    found = coco_metrics(source, results)
    found.pop("images")
    assert found == pytest.approx(by_pycocotools(source, results), abs=1e-6)
    assert found["box_ap"] < 95


def test_crowds_cost_nothing_as_pycocotools_says():
    source = few_scenes(evaluation=10)
    annotations = copy.deepcopy(source.evaluation.annotations)
    for objects in annotations:
        objects[0]["iscrowd"] = 1
    split = AnnotatedSplit(source.evaluation.images, source.evaluation.sizes, annotations)
    crowded = AnnotatedSource("crowded", source.categories, source.train, split)
    results = perfect(source)
    found = coco_metrics(crowded, results)
    found.pop("images")
    assert found == pytest.approx(by_pycocotools(crowded, results), abs=1e-6)
    # What lies in the crowds is neither right nor wrong.
    assert found["box_ap"] == pytest.approx(100)


# From the square that the detector sees back to the image


def one_object(width, height, left, top, right, bottom):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    annotation = {
        "category_id": 5,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": encode(mask),
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
    images = array_split(np.zeros((1, height, width, 3), np.uint8), np.zeros(1, np.int64), "test")
    split = AnnotatedSplit(images, np.array([[width, height]]), ([annotation],))
    return AnnotatedSource("test", (Category(5, "thing"),), split, split)


@pytest.mark.parametrize("size", [(96, 96), (90, 60), (30, 120), (61, 37)])
def test_what_is_found_in_the_square_comes_back_to_the_image(size):
    width, height = size
    box = (width // 5, height // 4, width // 5 + 20, height // 4 + 24)
    source = one_object(width, height, *box)
    loader = loader_of(source, 64)
    across, down = (seen / own for seen, own in zip(loader.view(0).size, size, strict=True))
    in_square = torch.tensor([[box[0] * across, box[1] * down, box[2] * across, box[3] * down]])
    found = {
        "boxes": in_square,
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.9]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    (result,) = in_images([found], torch.tensor([0]), loader)
    assert result["category_id"] == 5
    assert result["bbox"] == pytest.approx([box[0], box[1], 20, 24], abs=1e-4)
    metrics = coco_metrics(source, [result])
    assert metrics["box_ap"] == pytest.approx(100)
    assert metrics["mask_ap"] >= 90  # a mask of 28 x 28 is pasted by interpolation


def test_boxes_beyond_the_image_are_cut():
    loader = loader_of(one_object(90, 60, 0, 0, 10, 10), 90)
    found = {
        "boxes": torch.tensor([[-5.0, 40.0, 20.0, 80.0]]),
        "labels": torch.tensor([0]),
        "scores": torch.tensor([0.9]),
        "masks": torch.ones(1, 1, 28, 28),
    }
    (result,) = in_images([found], torch.tensor([0]), loader)
    assert result["bbox"] == pytest.approx([0, 40, 20, 20])


def stand_in(loader):
    """Return a detector that finds half of the truth of the images it is shown, in the order of the loader."""
    numbers = iter([n for keys in loader._keys for n in keys.tolist()])

    def detect(images):
        found = []
        for _ in images:
            number = next(numbers)
            objects = loader.source.evaluation.annotations[number][: 1 + number % 2]
            boxes = torch.tensor([[x, y, x + w + number % 3, y + h] for x, y, w, h in (o["bbox"] for o in objects)])
            labels = torch.tensor([o["category_id"] - 1 for o in objects])
            scores = torch.linspace(0.9, 0.5, len(objects)) + number / 1000
            found.append(
                {"boxes": boxes, "labels": labels, "scores": scores, "masks": torch.ones(len(objects), 1, 28, 28)}
            )
        return found

    return detect


def test_average_precision_runs_over_the_whole_loader():
    loader = loader_of(few_scenes(evaluation=10), 96)
    found = average_precision(stand_in(loader), loader)
    assert found["images"] == 10
    assert 0 < found["box_ap"] < 100


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    loader = loader_of(few_scenes(evaluation=7), 96, rank, 2)
    found = average_precision(stand_in(loader), loader)
    # The second process has found nothing in this one.
    assert len(gather([{"a": 1}] * (3 if rank == 0 else 0), CPU)) == 3
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_measure_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked.together(_rank, port, str(tmp_path))
    loader = loader_of(few_scenes(evaluation=7), 96)
    alone = average_precision(stand_in(loader), loader)
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
