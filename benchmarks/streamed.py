"""The streamed loader: images per second of all of it, from JPEG files of 320 to 500 pixels and from small ones.

python -m benchmarks.streamed [--out FILE]

An epoch of resized crops, flips, random erasing and mixing, with and without RandAugment, with one and with two
workers; nothing consumes the batches, so the loader is all that is measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.record import report
from vitutor_core.data.build import build_data
from vitutor_core.schema import RunConfig

COUNT, BATCH, ROUNDS = 400, 32, 5
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
CASES = [(side, workers, rand) for side in (224, 32) for workers in (1, 2) for rand in (None, RAND_AUGMENT)]


def write_photos(folder: Path, sides: tuple[int, int], count: int = COUNT) -> None:
    """Write ``folder/{train,val}/CLASS/*.jpg``, cut from scikit-learn's two photos and enlarged to ``sides`` pixels."""
    photos = [Image.fromarray(image) for image in load_sample_images().images]
    random = np.random.default_rng(0)
    for number in range(count + 4):
        path = folder / ("train" if number < count else "val") / str(number % 2) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = photos[number % 2]
        size = width, height = tuple(random.integers(sides[0], sides[1] + 1, 2).tolist())
        shrink = min(1.0, 300 / max(size))
        width, height = int(width * shrink), int(height * shrink)
        left, top = (
            int(random.integers(0, whole - part + 1)) for whole, part in zip(photo.size, (width, height), strict=True)
        )
        photo.crop((left, top, left + width, top + height)).resize(size).save(path, quality=90)


def images_per_second(folder: Path, side: int, workers: int, rand_augment: str | None) -> float:
    """Load an epoch."""
    augment = {"crop_scale": [0.08, 1.0], "flip": 0.5, "random_erasing": 0.25, "mixup": 0.8, "cutmix": 1.0}
    config: dict[str, Any] = {
        "data": {"source": f"folder:{folder}", "image_size": side, "loader": "streamed", "interpolation": "bicubic"},
        "augment": augment | {"rand_augment": rand_augment},
        "student": {"name": "unused"},
        "optim": {"lr": 1.0},
        "train": {"epochs": 1, "batch_size": BATCH},
        "runtime": {"workers": workers},
    }
    train = build_data(RunConfig.from_mapping(config, where="benchmark"), device=torch.device("cpu")).train
    started = time.perf_counter()
    count = sum(len(batch.images) for batches in train.epoch(0) for batch in batches)
    seconds = time.perf_counter() - started
    train.close()
    return count / seconds


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = {224: Path(folder, "large"), 32: Path(folder, "small")}
        write_photos(photos[224], (320, 500))
        write_photos(photos[32], (32, 40), 4 * COUNT)
        for side, workers, rand in CASES:
            speeds = [images_per_second(photos[side], side, workers, rand) for _ in range(ROUNDS)]
            name = f"{side} px, {workers} workers, {'RandAugment' if rand else 'no RandAugment'}: images per s"
            figures[name] = statistics.median(speeds)
    report("streamed loader", figures)


if __name__ == "__main__":
    main()
