"""The streamed loader: images are decoded and augmented one by one with timm's PIL transforms, in worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from vitutor_core.data import keyed
from vitutor_core.data.mixing import Finish, Normalise
from vitutor_core.data.resample import EvalGeometry, eval_fit, resize_and_crop
from vitutor_core.data.sampler import KeyedSampler, SampleKeys
from vitutor_core.data.stream import Stream
from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import Batch, DataInfo, Split
from vitutor_core.schema import AugmentConfig, DataConfig, RuntimeConfig

Transform = Callable[[Image.Image], Tensor]


class StreamedTrainLoader:
    """Training batches of the images ``indices`` of ``split``; see `TrainLoader`.

    The generators of Python, NumPy and torch are seeded for each view from its key, so the pixels depend neither on
    the number of workers nor on where an epoch was entered.
    """

    def __init__(
        self,
        split: Split,
        indices: NDArray[np.int64],
        transform: Transform,
        *,
        sampler: KeyedSampler,
        finish: Finish,
        runtime: RuntimeConfig,
        device: torch.device,
    ) -> None:
        self.steps_per_epoch = sampler.steps_per_epoch
        self._sampler = sampler
        self._finish = finish
        self._device = device
        self._stream = Stream(partial(_augment, split, indices, transform), runtime, pin=device.type == "cuda")

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[tuple[Batch, ...]]:
        steps = list(self._sampler.steps(epoch, start_step))
        images = self._stream([keys for _, micro_batches in steps for keys in micro_batches])
        for step, micro_batches in steps:
            yield tuple(self._batch(next(images), keys, step, micro) for micro, keys in enumerate(micro_batches))

    def close(self) -> None:
        self._stream.close()

    def _batch(self, images: Tensor, keys: SampleKeys, step: int, micro: int) -> Batch:
        pixels = self._finish.pixels(images.to(self._device, non_blocking=True), keys)
        return self._finish.batch(pixels, to_device(keys.indices, self._device), (keys.epoch, step, micro))


class StreamedEvalLoader:
    """Evaluation batches of the images ``indices`` of ``split``; the workers live as long as one pass."""

    def __init__(
        self,
        split: Split,
        indices: NDArray[np.int64],
        transform: Transform,
        *,
        normalise: Normalise,
        runtime: RuntimeConfig,
        device: torch.device,
    ) -> None:
        self._split = split
        size = runtime.eval_batch_size
        self._keys = [indices[start : start + size] for start in range(0, len(indices), size)]
        self._decode = partial(_decode, split, transform)
        self._normalise = normalise
        self._runtime = runtime
        self._device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        stream = Stream(self._decode, self._runtime, pin=self._device.type == "cuda")
        try:
            for indices, images in zip(self._keys, stream(self._keys), strict=True):
                labels = to_device(self._split.labels[indices], self._device)
                yield self._normalise(images.to(self._device, non_blocking=True)), labels
        finally:
            stream.close()


def _augment(split: Split, subset: NDArray[np.int64], transform: Transform, keys: SampleKeys) -> Tensor:
    """Decode and augment one micro-batch of the images ``subset`` of ``split``: (B, 3, S, S) uint8."""
    images = []
    with _private_generators():
        for index, repeat in zip(keys.indices, keys.repeats, strict=True):
            image = split.read(int(subset[index]))
            _seed_generators(keyed.seed_from(keys.seed, keys.epoch, int(index), int(repeat)))
            images.append(transform(image))
    return torch.stack(images)


def _decode(split: Split, transform: Transform, indices: NDArray[np.int64]) -> Tensor:
    """Decode the images ``indices`` of ``split``: (B, 3, S, S) uint8."""
    return torch.stack([transform(split.read(int(index))) for index in indices])


def train_transform(data: DataConfig, augment: AugmentConfig, info: DataInfo) -> Transform:
    """Return timm's training transform, from a PIL image to (3, S, S) uint8.

    Without ``crop_scale`` the shorter side is resized to ``image_size`` and the centre cut out, before the pad-crop.
    """
    from timm.data import create_transform
    from torchvision import transforms

    geometry, colours, to_tensor = create_transform(
        data.image_size,
        is_training=True,
        scale=augment.crop_scale,
        ratio=augment.crop_aspect,
        hflip=augment.flip,
        color_jitter=augment.color_jitter or None,
        auto_augment=augment.rand_augment,
        interpolation=data.interpolation,
        mean=info.mean,
        std=info.std,
        use_prefetcher=True,  # ends with 8-bit tensors
        separate=True,
    )
    if augment.crop_scale is None:
        side = data.image_size
        fit = partial(resize_and_crop, shorter_side=side, crop=side, interpolation=data.interpolation)
        steps: list[Callable[[Image.Image], Image.Image]] = [fit]
        if augment.pad_crop:
            steps.append(transforms.RandomCrop(side, padding=augment.pad_crop))
        geometry = transforms.Compose([*steps, transforms.RandomHorizontalFlip(augment.flip)])
    transform: Transform = transforms.Compose([geometry, allow_zero_bits(colours), to_tensor])
    return transform


def allow_zero_bits(transform: Any) -> Any:
    """Make the RandAugment in timm's composed ``transform`` bear what Pillow 13 refuses, and return it.

    From magnitude 10 on, timm posterises to 0 bits, a black image; ``ImageOps.posterize`` now starts at 1.
    """
    from timm.data.auto_augment import RandAugment, posterize

    for step in transform.transforms:
        for op in step.ops if isinstance(step, RandAugment) else ():
            if op.aug_fn is posterize:
                op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    return Image.new(image.mode, image.size) if bits < 1 else ImageOps.posterize(image, min(bits, 8))


def eval_transform(data: EvalGeometry) -> Transform:
    """Return the evaluation transform, from a PIL image to (3, S, S) uint8."""
    fit = eval_fit(data)
    return lambda image: torch.from_numpy(np.array(fit(image))).permute(2, 0, 1)


@contextmanager
def _private_generators() -> Iterator[None]:
    """Leave the global generators as they were; without workers, this is the process that trains."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # timm's generator
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002  # timm's generator


def _seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # timm's generator
    # torch.manual_seed would reseed CUDA as well, which dropout draws from.
    torch.default_generator.manual_seed(seed)
