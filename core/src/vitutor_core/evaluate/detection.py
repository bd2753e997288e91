"""Average precision of boxes and masks, as COCO defines it, by faster-coco-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vitutor_core.data.detection.annotated import AnnotatedSource, Annotation, coco_module, encode
from vitutor_core.data.detection.load import AnnotatedEvalLoader
from vitutor_core.distributed import gather_rows

Detect = Callable[[Tensor], list[dict[str, Tensor]]]
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
"""Of the first figures that COCO's evaluation gives."""


def average_precision(detect: Detect, loader: AnnotatedEvalLoader) -> dict[str, float]:
    """Return ``box_ap`` and ``mask_ap`` in percent over all images of all processes, and what COCO reports beside them.

    ``_ap50`` and ``_ap75`` are at one overlap, ``_ap_small``, ``_ap_medium`` and ``_ap_large`` of objects of that
    size; a size that no object has is left out. ``images`` is their number.
    """
    own = [one for images, numbers in loader for one in in_images(detect(images), numbers, loader)]
    return coco_metrics(loader.source, gather(own, loader.device))


def found_in_first(detect: Detect, loader: AnnotatedEvalLoader, count: int) -> dict[int, list[Annotation]]:
    """Return what is found in the first ``count`` images of a loader, by their numbers."""
    images, numbers = next(iter(loader))
    found: dict[int, list[Annotation]] = {number: [] for number in numbers[:count].tolist()}
    for one in in_images(detect(images[:count]), numbers[:count], loader):
        found[one["image_id"]].append(one)
    return found


def in_images(found: Sequence[dict[str, Tensor]], numbers: Tensor, loader: AnnotatedEvalLoader) -> list[Annotation]:
    """Return detections, of `Detector.detect`, as COCO's results, in the pixels of the images before they were resized.

    ``numbers`` (B,) are those of the images in the evaluation split.
    """
    results: list[Annotation] = []
    split, categories = loader.source.evaluation, loader.source.categories
    for number, one in zip(numbers.tolist(), found, strict=True):
        width, height = split.sizes[number].tolist()
        across, down = width / loader.view(number).size[0], height / loader.view(number).size[1]
        boxes = one["boxes"].float().cpu() * torch.tensor([across, down, across, down])
        masks = paste_masks_in_image(one["masks"].float().cpu(), boxes, (height, width))[:, 0] > 0.5
        limits = torch.tensor([width, height, width, height])
        corners = boxes.clamp(min=torch.zeros(4)).minimum(limits).double()
        sized = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        for box, mask, label, score in zip(
            sized, masks.numpy(), one["labels"].tolist(), one["scores"].tolist(), strict=True
        ):
            found_as = {"image_id": number, "category_id": categories[label].id, "score": score}
            results.append(found_as | {"bbox": box, "segmentation": encode(mask)})
    return results


def gather(results: list[Annotation], device: torch.device) -> list[Annotation]:
    """Return the results of all processes, in the order of their ranks; they talk through ``device``."""
    text = np.frombuffer("".join(f"{json.dumps(one)}\n" for one in results).encode(), dtype=np.uint8)
    everything = gather_rows(torch.from_numpy(text.copy()).to(device)).cpu().numpy().tobytes()
    return [json.loads(line) for line in everything.splitlines()]


def coco_metrics(source: AnnotatedSource, results: Sequence[Annotation]) -> dict[str, float]:
    """Compare COCO's results, whose image ids are positions in the evaluation split, with what is there."""
    coco = coco_module("faster_coco_eval")
    split = source.evaluation
    truth = [{"image_id": number, **one} for number, objects in enumerate(split.annotations) for one in objects]
    data = {
        "images": [
            {"id": n, "width": width, "height": height} for n, (width, height) in enumerate(split.sizes.tolist())
        ],
        "annotations": [{"id": number, **one} for number, one in enumerate(truth, start=1)],
        "categories": [category._asdict() for category in source.categories],
    }
    metrics: dict[str, float] = {}
    for name, kind, other in (("box", "bbox", "segmentation"), ("mask", "segm", "bbox")):
        known = coco.COCO(json.loads(json.dumps(data)))
        # Without the other: the size of an object is the area of what is compared.
        kept = [{key: value for key, value in one.items() if key != other} for one in results]
        evaluation = coco.COCOeval_faster(known, known.loadRes(kept), kind, print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        figures = zip(_NAMES, evaluation.stats, strict=False)
        metrics |= {f"{name}_{of}": 100 * float(figure) for of, figure in figures if figure >= 0}
    return metrics | {"images": float(len(split))}
