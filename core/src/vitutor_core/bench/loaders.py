"""The loaders against timm's: images in memory, 32 pixels; and JPEG files, small ones and of 320 to 500 pixels."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import ImageDataset, create_loader, create_transform
from timm.data.auto_augment import RandAugment, posterize
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from vitutor_core.bench.result import Result
from vitutor_core.bench.timing import interleave
from vitutor_core.data.augment.mixing import Finish
from vitutor_core.data.augment.pipeline import Augment
from vitutor_core.data.build import build_data
from vitutor_core.data.loaders.resident import ResidentTrainLoader
from vitutor_core.data.sampler import KeyedSampler
from vitutor_core.data.types import DataInfo
from vitutor_core.schema import RunConfig

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
BATCH, STORED, FILES = 128, 4096, 256
CROP: dict[str, Any] = {"crop_scale": [0.08, 1.0], "flip": 0.5}


def resident(device: torch.device, seconds: float) -> Result:
    """Compare with timm's transforms over decoded PIL images in a DataLoader without workers."""
    result, round_ = Result(), BATCH * 4
    pad_crop = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    kinds: dict[str, tuple[dict[str, Any], Callable[[Image.Image], torch.Tensor]]] = {
        "pad-crop, flip": ({"pad_crop": 4, "flip": 0.5}, pad_crop),
        "crop, flip": (CROP, _timm_transform(None)),
        "crop, flip, RandAugment": ({**CROP, "rand_augment": RAND_AUGMENT}, _timm_transform(RAND_AUGMENT)),
    }
    for kind, (augment, transform) in kinds.items():
        made = resident_loader(_config({"image_size": 32}, augment, BATCH), device)
        batches = itertools.chain.from_iterable(made.epoch(epoch) for epoch in itertools.count())
        theirs: DataLoader[Any] = DataLoader(_Decoded(_pixels(round_, 32), transform), BATCH, shuffle=True)
        times = interleave(
            lambda theirs=theirs: [images.to(device) for images, _ in theirs],  # type: ignore[misc]
            lambda batches=batches: list(itertools.islice(batches, round_ // BATCH)),  # type: ignore[misc]
            seconds=seconds / len(kinds),
            warm_up=1,
            device=device,
        )
        result.add(f"timm, PIL: {kind}", "resident loader", times)
    return result


def streamed(device: torch.device, seconds: float) -> Result:
    """Compare with timm's loader over the same files, with resized crops, flips and erasing, one and two workers."""
    result, cases = Result(), [(side, workers) for side in (32, 224) for workers in (1, 2)]
    with tempfile.TemporaryDirectory() as folder:
        photos = {32: Path(folder, "small"), 224: Path(folder, "large")}
        write_photos(photos[32], (32, 40), 4 * FILES)
        write_photos(photos[224], (320, 500), FILES)
        for side, workers in cases:
            ours, theirs = _ours(photos[side], side, workers, device), _timms(photos[side], side, workers, device)
            numbers = itertools.count()
            try:
                times = interleave(
                    lambda theirs=theirs: sum(1 for _ in theirs),  # type: ignore[misc]
                    lambda ours=ours, numbers=numbers: sum(1 for _ in ours.epoch(next(numbers))),  # type: ignore[misc]
                    seconds=seconds / len(cases),
                    warm_up=1,
                    device=device,
                )
            finally:
                ours.close()
            result.add(f"timm, files: {side} px, workers {workers}", "streamed loader", times)
    return result


def resident_loader(config: RunConfig, device: torch.device) -> ResidentTrainLoader:
    """Return the resident loader of random pixels, of a config's size, batch and augmentation."""
    side = config.data.image_size
    info = DataInfo("noise", tuple("0123456789"), side, 3, MEAN, STD, STORED, 0, "")
    images = torch.from_numpy(_pixels(STORED, side)).permute(0, 3, 1, 2).contiguous().to(device)
    finish = Finish(config, info, (torch.arange(STORED) % 10).to(device), rank=0)
    order = KeyedSampler(STORED, seed=0, batch_size=config.train.batch_size)
    return ResidentTrainLoader(images, order, Augment(config.data, config.augment, MEAN, device), finish)


def write_photos(folder: Path, sides: tuple[int, int], count: int) -> None:
    """Write ``folder/{train,val}/CLASS/*.jpg``, cut from scikit-learn's two photos and enlarged to ``sides`` pixels."""
    from sklearn.datasets import load_sample_images

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


def _ours(folder: Path, side: int, workers: int, device: torch.device) -> Any:
    data = {"source": f"folder:{folder}", "image_size": side, "loader": "streamed", "interpolation": "bicubic"}
    config = _config(data, {**CROP, "random_erasing": 0.25}, 32).changed([f"runtime.workers={workers}"])
    return build_data(config, device=device).train


def _timms(folder: Path, side: int, workers: int, device: torch.device) -> Iterator[Any]:
    loader: Iterator[Any] = create_loader(
        ImageDataset(str(folder / "train")),
        input_size=(3, side, side),
        batch_size=32,
        is_training=True,
        use_prefetcher=device.type == "cuda",
        scale=(0.08, 1.0),
        color_jitter=None,
        re_prob=0.25,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        num_workers=workers,
        persistent_workers=True,
        device=device,
    )
    return loader


def _config(data: dict[str, Any], augment: dict[str, Any], batch: int) -> RunConfig:
    rest = {"student": {"name": "unused"}, "optim": {"lr": 1.0}, "train": {"epochs": 1000, "batch_size": batch}}
    return RunConfig.from_mapping({"data": data, "augment": augment, **rest}, where="bench")


def _pixels(count: int, side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


class _Decoded(Dataset[Any]):
    """PIL images in memory."""

    def __init__(self, pixels: np.ndarray[Any, Any], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images = [Image.fromarray(image) for image in pixels]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), index % 10


def _timm_transform(rand_augment: str | None) -> Callable[[Image.Image], torch.Tensor]:
    """Return timm's training transform, with normalisation; colour jitter is off, as RandAugment replaces it."""
    transform: Any = create_transform(
        32, is_training=True, color_jitter=None, auto_augment=rand_augment, hflip=0.5, mean=MEAN, std=STD
    )
    for step in transform.transforms:
        for op in step.ops if isinstance(step, RandAugment) else ():
            if op.aug_fn is posterize:
                op.aug_fn = _posterize_to_black
    return transform  # type: ignore[no-any-return]


def _posterize_to_black(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep 0 bits, too: timm does at magnitude 10, where Pillow 13 refuses."""
    return ImageOps.posterize(image, min(bits, 8)) if bits else Image.new(image.mode, image.size)
