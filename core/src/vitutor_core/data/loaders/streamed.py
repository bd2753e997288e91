"""The streamed loader: worker processes decode the images of a batch and cut the keyed boxes out of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitutor_core.data.augment.mixing import Finish, Normalise
from vitutor_core.data.augment.pipeline import Augment, draw_crops
from vitutor_core.data.augment.resample import Transform, crop_and_resize, resize_and_crop
from vitutor_core.data.loaders.workers import Stream
from vitutor_core.data.sampler import KeyedSampler, SampleKeys
from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import Batch, Position, Split, never
from vitutor_core.schema import RunConfig, RuntimeConfig

_PIXELS_AT_ONCE = 2**22
"""Of decoded images that a worker holds before it cuts them, unless one alone has more."""


class StreamedTrainLoader:
    """Training batches that worker processes begin; see `TrainLoader`.

    ``fetch`` makes the images of a micro-batch there, (B, 3, side, side) uint8. Of these, when they are on the device,
    and of their keys and position, ``finish`` makes the batch.
    """

    def __init__(
        self,
        fetch: Callable[[SampleKeys], Tensor],
        finish: Callable[[Tensor, SampleKeys, Position], Batch],
        sampler: KeyedSampler,
        side: int,
        runtime: RuntimeConfig,
        device: torch.device,
    ) -> None:
        self.steps_per_epoch = sampler.steps_per_epoch
        self._sampler, self._finish = sampler, finish
        self._stream = Stream(fetch, (sampler.micro_batch_size, 3, side, side), runtime, device)

    def epoch(
        self, epoch: int, *, start_step: int = 0, give_up: Callable[[], bool] = never
    ) -> Iterator[tuple[Batch, ...]]:
        steps = list(self._sampler.steps(epoch, start_step))
        images = self._stream([keys for _, micro_batches in steps for keys in micro_batches], give_up)
        for step, micro_batches in steps:
            yield tuple(
                self._finish(next(images), keys, (epoch, step, micro)) for micro, keys in enumerate(micro_batches)
            )

    def close(self) -> None:
        self._stream.close()


class StreamedEvalLoader:
    """Evaluation batches of the images ``indices``, which ``fetch`` makes: (B, 3, side, side) uint8.

    ``labels`` are those of all images. The workers live as long as one pass.
    """

    def __init__(
        self,
        fetch: Callable[[NDArray[np.int64]], Tensor],
        indices: NDArray[np.int64],
        labels: NDArray[np.int64],
        side: int,
        normalise: Normalise,
        runtime: RuntimeConfig,
        device: torch.device,
    ) -> None:
        size = runtime.eval_batch_size
        self._keys = [indices[start : start + size] for start in range(0, len(indices), size)]
        self._labels, self._normalise, self.device = labels, normalise, device
        self._start = partial(Stream, fetch, (min(size, len(indices)), 3, side, side), runtime, device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        stream = self._start()
        try:
            for indices, images in zip(self._keys, stream(self._keys), strict=True):
                yield self._normalise(images), to_device(self._labels[indices], self.device)
        finally:
            stream.close()


def streamed_train(
    split: Split,
    subset: NDArray[np.int64],
    config: RunConfig,
    *,
    sampler: KeyedSampler,
    augment: Augment,
    finish: Finish,
    device: torch.device,
    in_workers: bool,
) -> StreamedTrainLoader:
    """Make the loader of the images ``subset`` of ``split``, which the workers decode and crop.

    `Augment` runs on the device or, ``in_workers``, there; the pixels are the same.
    """

    def fetch(keys: SampleKeys) -> Tensor:
        images = _cut(split, subset, config, keys)
        return augment(images, keys).to(torch.uint8) if in_workers else images

    def finish_batch(images: Tensor, keys: SampleKeys, position: Position) -> Batch:
        pixels = finish.pixels(images if in_workers else augment(images, keys), keys)
        return finish.batch(pixels, to_device(keys.indices, device), position)

    return StreamedTrainLoader(fetch, finish_batch, sampler, config.data.image_size, config.runtime, device)


def decode_whole(split: Split, transform: Transform, indices: NDArray[np.int64]) -> Tensor:
    """Decode the images ``indices`` of ``split`` for evaluation: (B, 3, S, S) uint8."""
    return torch.stack([transform(split.read(index)) for index in indices.tolist()])


def _cut(split: Split, subset: NDArray[np.int64], config: RunConfig, keys: SampleKeys) -> Tensor:
    """Decode one micro-batch of the images ``subset`` of ``split`` and crop it: (B, 3, S, S) uint8.

    Without ``crop_scale``, the shorter side is resized to ``image_size`` and the centre cut out.
    """
    data, augment, side = config.data, config.augment, config.data.image_size
    pixels = np.empty((len(keys.indices), 3, side, side), dtype=np.uint8)
    for first, images in _decoded(split, subset[keys.indices]):
        rows = slice(first, first + len(images))
        if augment.crop_scale is None:
            cut = [resize_and_crop(image, side, side, data.interpolation) for image in images]
        else:
            part = keys._replace(indices=keys.indices[rows], repeats=keys.repeats[rows])
            sides = [(image.height, image.width) for image in images]
            boxes = draw_crops(part, sides, augment.crop_scale, augment.crop_aspect)
            cut = [
                crop_and_resize(image, box, side, data.interpolation)
                for image, box in zip(images, boxes.tolist(), strict=True)
            ]
        for target, image in zip(pixels[rows], cut, strict=True):
            target[:] = np.asarray(image).transpose(2, 0, 1)
    return torch.from_numpy(pixels)


def _decoded(split: Split, indices: NDArray[np.int64]) -> Iterator[tuple[int, list[Image.Image]]]:
    """Yield the images ``indices`` in stretches that fit into memory, each with the position of its first image."""
    images: list[Image.Image] = []
    num_pixels = 0
    for position, index in enumerate(indices.tolist()):
        # The views of repeated augmentation follow each other.
        known = bool(images) and index == indices[position - 1]
        images.append(images[-1] if known else split.read(index))
        num_pixels += images[-1].width * images[-1].height
        if num_pixels >= _PIXELS_AT_ONCE or position + 1 == len(indices):
            yield position + 1 - len(images), images
            images, num_pixels = [], 0
