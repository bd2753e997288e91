"""Small photos: crops of the two that scikit-learn brings along, a class for each half of each."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("leaves", "petals", "roof", "sky")


@functools.cache
def _halves() -> dict[str, Image.Image]:
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    width, height = china.size
    return {
        "sky": china.crop((0, 0, width, height // 2)),
        "roof": china.crop((0, height // 2, width, height)),
        "leaves": flower.crop((0, 0, width // 2, height)),
        "petals": flower.crop((width // 2, 0, width, height)),
    }


def write_photos(folder: Path, *, train: int, val: int) -> Path:
    """Write ``folder/{train,val}/<class>/N.jpg``, of 40 to 90 pixels a side; return the folder."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name, photo in _halves().items():
            path = folder / split / name
            path.mkdir(parents=True)
            for number in range(count):
                width, height = generator.integers(40, 90, 2).tolist()
                left, top = (int(generator.integers(0, side - 90)) for side in photo.size)
                photo.crop((left, top, left + width, top + height)).save(path / f"{number}.jpg", quality=90)
    return folder


def photo_settings(folder: Path) -> tuple[str, ...]:
    """Return settings by which the tiny run trains on these photos, cropped as pre-trained models are."""
    return (
        f"data.source=folder:{folder}",
        "data.per_class=null",
        "data.image_size=32",
        "data.crop_ratio=0.9",
        "data.interpolation=bicubic",
        "train.batch_size=16",
        "train.epochs=8",
        "optim.lr=3e-3",
    )
