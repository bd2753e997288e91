"""The resident loader against timm's PIL loader: 32-pixel images, one process, one thread.

python -m benchmarks.loader [--out FILE]

Theirs is ``create_transform`` and a DataLoader without workers over decoded PIL images; both end with normalised
float32 batches. Colour jitter is off, since RandAugment replaces it in both. Also: the time of a batch of 64 images of
16 pixels with pad-crop alone, which is what the smallest recipes load.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.record import interleave, ratio, report
from vitutor_core.data.augment.mixing import Finish
from vitutor_core.data.augment.pipeline import Augment
from vitutor_core.data.loaders.resident import ResidentTrainLoader
from vitutor_core.data.sampler import KeyedSampler
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.schema import RunConfig

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
BATCH, ROUND, STORED = 128, 1024, 4096


class Decoded(Dataset[Any]):
    """PIL images in memory."""

    def __init__(self, pixels: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images = [Image.fromarray(image) for image in pixels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), index % 10


def pixels(count: int, side: int) -> np.ndarray:
    """Return (count, side, side, 3) random grey levels."""
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def ours(side: int, batch: int, augment: dict[str, Any]) -> Iterator[tuple[Batch, ...]]:
    """Yield the resident loader's batches without end."""
    config = RunConfig.from_mapping(
        {
            "data": {"image_size": side},
            "augment": augment,
            "student": {"name": "unused"},
            "optim": {"lr": 1.0},
            "train": {"epochs": 1, "batch_size": batch},
        },
        where="benchmark",
    )
    cpu = torch.device("cpu")
    info = DataInfo("random", tuple("0123456789"), side, 3, MEAN, STD, STORED, 0, "")
    images = torch.from_numpy(pixels(STORED, side)).permute(0, 3, 1, 2).contiguous()
    finish = Finish(config, info, torch.arange(STORED) % 10, rank=0)
    order = KeyedSampler(STORED, seed=0, batch_size=batch)
    loader = ResidentTrainLoader(images, order, Augment(config.data, config.augment, MEAN, cpu), finish)
    return itertools.chain.from_iterable(loader.epoch(epoch) for epoch in itertools.count())


def theirs(transform: Callable[[Image.Image], torch.Tensor]) -> DataLoader[Any]:
    """Return timm's way: one transform per image, batches of the default collate function."""
    return DataLoader(Decoded(pixels(ROUND, 32), transform), batch_size=BATCH, shuffle=True, drop_last=True)


def timm_transform(rand_augment: str | None) -> Callable[[Image.Image], torch.Tensor]:
    """Return timm's training transform, with normalisation."""
    transform: Any = create_transform(
        32, is_training=True, color_jitter=None, auto_augment=rand_augment, hflip=0.5, mean=MEAN, std=STD
    )
    for step in transform.transforms:
        for op in step.ops if isinstance(step, RandAugment) else ():
            if op.aug_fn is posterize:
                op.aug_fn = posterize_to_black
    return transform  # type: ignore[no-any-return]


def posterize_to_black(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep 0 bits, too: timm does at magnitude 10, where Pillow 13 refuses."""
    return ImageOps.posterize(image, min(bits, 8)) if bits else Image.new(image.mode, image.size)


def compare(augment: dict[str, Any], transform: Callable[[Image.Image], torch.Tensor]) -> dict[str, float]:
    """Load ``ROUND`` images in turn with both."""
    batches, loader = ours(32, BATCH, augment), theirs(transform)
    times = interleave(
        lambda: list(itertools.islice(batches, ROUND // BATCH)), lambda: list(loader), rounds=15, warm_up=2
    )
    figures = ratio(*times)
    return {
        "ours_images_per_s": ROUND / figures["first_ms"] * 1e3,
        "timm_images_per_s": ROUND / figures["second_ms"] * 1e3,
        "ratio": 1 / figures["ratio"],
    }


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    crop = {"crop_scale": [0.08, 1.0], "flip": 0.5}
    pad_crop = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    figures: dict[str, Any] = {
        "pad-crop, flip": compare({"pad_crop": 4, "flip": 0.5}, pad_crop),
        "resized crop, flip": compare(crop, timm_transform(None)),
        "resized crop, flip, RandAugment": compare(
            {**crop, "rand_augment": RAND_AUGMENT}, timm_transform(RAND_AUGMENT)
        ),
    }
    small = ours(16, 64, {"pad_crop": 2})
    times = []
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(STORED // 64):
            next(small)
        times.append((time.perf_counter() - started) / (STORED // 64))
    figures["16 px, batch 64, pad-crop: ms per batch"] = statistics.median(times) * 1e3
    report("resident loader", figures)


if __name__ == "__main__":
    main()
