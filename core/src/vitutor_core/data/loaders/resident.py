"""The resident loader: all images live on the device as 8-bit pixels and are augmented there, batch by batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitutor_core.data.augment.mixing import Finish, Normalise
from vitutor_core.data.augment.pipeline import Augment
from vitutor_core.data.augment.resample import eval_fit, resize_and_crop
from vitutor_core.data.loaders.decoded import kept
from vitutor_core.data.sampler import KeyedSampler, join
from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import Batch, Split, never
from vitutor_core.errors import ResourceError
from vitutor_core.progress import RunProgress
from vitutor_core.schema import DataConfig

_CHUNK, _STREAMS = 16, 4
"""Images per task of the pool, and how many tasks may seem to end at once, as they are counted in their order."""
_PATIENCE_S = 3.0
"""What is decoded by then needs no progress bar."""
_PIXELS_AT_ONCE = 2**19
"""Small batches are augmented several at a time, which costs the same number of calls and kernels as one."""


class ResidentTrainLoader:
    """Training batches from ``images``, (N, 3, S, S) uint8 on the device; see `TrainLoader`."""

    def __init__(self, images: Tensor, sampler: KeyedSampler, augment: Augment, finish: Finish) -> None:
        self.steps_per_epoch = sampler.steps_per_epoch
        self._images = images
        self._sampler = sampler
        side = max(images.shape[-1], augment.size)
        pixels_per_update = sampler.micro_batch_size * sampler.accumulate * side**2
        self._updates_at_once = max(1, _PIXELS_AT_ONCE // pixels_per_update)
        # glibc gives blocks as large as a batch back to the system whenever they are freed, and half of the time of
        # the next batch can go into page faults, until one block just under 32 MiB has been freed.
        torch.empty(2**25 - 2**16, dtype=torch.uint8)
        self._augment = augment
        self._finish = finish

    def epoch(
        self, epoch: int, *, start_step: int = 0, give_up: Callable[[], bool] = never
    ) -> Iterator[tuple[Batch, ...]]:
        del give_up  # these batches are computed, not waited for
        steps = self._sampler.steps(epoch, start_step)
        while group := list(islice(steps, self._updates_at_once)):
            keys = join([keys for _, micro_batches in group for keys in micro_batches])
            indices = to_device(keys.indices, self._images.device)
            images = self._augment(self._images.index_select(0, indices), keys)
            images = self._finish.pixels(images, keys)
            size = self._sampler.micro_batch_size
            micro_batches = zip(torch.split(images, size), torch.split(indices, size), strict=True)
            for step, _ in group:
                yield tuple(
                    self._finish.batch(*next(micro_batches), (epoch, step, micro))
                    for micro in range(self._sampler.accumulate)
                )

    def close(self) -> None:
        """Do nothing: there are no workers."""


class ResidentEvalLoader:
    """Evaluation batches from ``images``, (M, 3, S, S) uint8, and ``labels``, (M,), both on the device."""

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, normalise: Normalise) -> None:
        self._images = images
        self._labels = labels
        self._batch_size = batch_size
        self._normalise = normalise

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self._images), self._batch_size):
            batch = slice(start, start + self._batch_size)
            yield self._normalise(self._images[batch]), self._labels[batch]


def load_train(
    split: Split,
    indices: NDArray[np.int64],
    config: DataConfig,
    *,
    cropped: bool,
    device: torch.device,
    contents: str | None = None,
) -> Tensor:
    """Decode the training subset ``indices`` of ``split`` to (N, 3, S, S) uint8 on ``device``.

    S is ``image_size`` (shorter side resized, centre cropped). Where random resized crops follow (``cropped``), images
    that share one square size keep it; others are brought to ``image_size / 0.875``, so that crops have detail to cut.
    For ``contents`` see `decode`.
    """
    to_pixels = partial(decode, split, indices, gigabytes=config.decoded_gb, device=device, contents=contents)
    side = config.image_size
    if cropped:
        native = split.read(int(indices[0])).size
        if native[0] == native[1]:
            try:
                return to_pixels(native[0], partial(_unchanged, size=native))
            except _OtherSizeError:
                pass
        side = round(config.image_size / 0.875)
    return to_pixels(side, partial(resize_and_crop, shorter_side=side, crop=side, interpolation=config.interpolation))


def load_eval(
    split: Split, indices: NDArray[np.int64], config: DataConfig, *, device: torch.device, contents: str | None = None
) -> Tensor:
    """Decode the evaluation images ``indices`` of ``split`` to (M, 3, image_size, image_size) uint8 on ``device``."""
    side, fit, gigabytes = config.image_size, eval_fit(config), config.decoded_gb
    return decode(split, indices, side, fit, gigabytes=gigabytes, device=device, contents=contents)


class _OtherSizeError(Exception):
    """Not all images have the size of the first."""


def _unchanged(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    if image.size != size:
        raise _OtherSizeError
    return image


def decode(
    split: Split,
    indices: NDArray[np.int64],
    side: int,
    prepare: partial[Image.Image],
    *,
    gigabytes: float,
    device: torch.device,
    contents: str | None = None,
) -> Tensor:
    """Decode the images ``indices`` in threads; ``prepare`` brings each to ``side`` x ``side`` pixels.

    Pixels are kept for later runs where ``gigabytes`` allow it, see `decoded.kept`; ``contents`` is
    ``split.contents(indices)``, or covers more images.
    Returns (N, 3, side, side) uint8 on ``device``. Raises ResourceError if the images do not fit into memory.
    """
    shape = (len(indices), 3, side, side)

    def decoded() -> NDArray[np.uint8]:
        pixels = np.empty(shape, dtype=np.uint8)

        def fill(start: int) -> None:
            for position in range(start, min(start + _CHUNK, len(indices))):
                image = prepare(split.read(int(indices[position])))
                pixels[position] = np.asarray(image).transpose(2, 0, 1)

        title = f"decoding {len(indices):,} images"
        with (
            RunProgress(title, len(indices), streams=_STREAMS, patience_s=_PATIENCE_S) as progress,
            ThreadPoolExecutor() as pool,
        ):
            try:
                chunks = pool.map(fill, range(0, len(indices), _CHUNK))
                for chunk, _ in enumerate(chunks, start=1):  # raises what a thread has raised
                    progress.update(min(chunk * _CHUNK, len(indices)), "")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C may come while progress is drawn
                raise
        return pixels

    def facts() -> list[Any]:
        chosen = hashlib.sha256(indices.astype("<i8").tobytes()).hexdigest()
        files = split.contents(indices) if contents is None else contents
        return [split.content_hash, files, chosen, prepare.func.__name__, prepare.keywords]

    try:
        return torch.from_numpy(kept(facts, shape, gigabytes, decoded)).to(device)
    except (MemoryError, torch.OutOfMemoryError):
        raise ResourceError(
            f"data.loader: {len(indices)} images of {side} x {side} pixels ({math.prod(shape) / 2**30:.1f} GiB) do not "
            f"fit into the memory of {device}; use data.loader=streamed"
        ) from None
