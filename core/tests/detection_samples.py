"""Small data with boxes and masks, and runs of seconds on them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit
from vitutor_core.data.detection.coco import write_coco
from vitutor_core.data.detection.scenes import scenes_source
from vitutor_core.data.sources.subsets import part
from vitutor_core.runs import RunRecord
from vitutor_core.schema import DetectorConfig
from vitutor_core.train.detector import Detector
from vitutor_core.train.session import RunLabel, train

TINY = {
    "data": {"source": "scenes", "image_size": 48},
    "augment": {"flip": 0.5},
    "student": {
        "name": "vit_tiny_patch16_224",
        "kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
    "optim": {"lr": 1e-3, "schedule_unit": "update", "layer_decay": 0.8},
    "train": {"epochs": 2, "batch_size": 4},
    "detect": {"channels": 16, "proposals": 32, "scale": [0.8, 1.25], "window": 4, "global_blocks": 1},
    "runtime": {"device": "cpu", "threads": 1, "workers": 0, "log_every_steps": 2, "eval_batch_size": 8},
}


def tiny_config(*settings: str) -> DetectorConfig:
    return DetectorConfig.from_mapping(TINY, where="tiny").changed(settings)


def first(split: AnnotatedSplit, count: int) -> AnnotatedSplit:
    """Return the first images of a split."""
    images = part(split.images, np.arange(count))
    return AnnotatedSplit(images, split.sizes[:count], split.annotations[:count])


def few_scenes(train: int = 8, evaluation: int = 6) -> AnnotatedSource:
    source = scenes_source()
    return dataclasses.replace(
        source, train=first(source.train, train), evaluation=first(source.evaluation, evaluation)
    )


def write_few(folder: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """Write a few scenes in COCO's layout; ``change`` edits the annotations of the training split."""
    write_coco(few_scenes(), folder)
    file = folder / "annotations" / "instances_train.json"
    loaded = json.loads(file.read_text())
    if change is not None:
        change(loaded)
    file.write_text(json.dumps(loaded))
    return folder


def run(out: Path, *settings: str, source: AnnotatedSource | None = None) -> RunRecord:
    """Train the tiny detector on 8 scenes into ``out``, and evaluate it on 6."""
    with mock.patch("vitutor_core.data.detection.load.open_annotated", return_value=source or few_scenes()):
        label = RunLabel("detect", "test", "scenes", "test")
        return train(tiny_config(*settings), Detector.build, label=label, out=out)
