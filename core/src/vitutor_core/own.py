"""Sizes of a run on a user's own images: plain arithmetic on their number, their size and the machine.

A recipe names what follows from them by a dollar, such as ``batch_size: $batch_size``; each name is a field of `Sizes`.
The numbers were chosen for one aim: a model that has learnt what a small one can, in minutes on two cores, or within
half an hour on a GPU. Nothing is measured here; `vitutor_core.sizing` does that.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from vitutor_core.errors import ConfigError

HOLDOUT = 0.2
"""Share of the images that is evaluated on where there is no validation split."""
FULL_SIZE = 224
CPU_SIZE = 64
"""The largest image sides with a GPU and without; a step at 224 px takes a CPU sixty times as long as one at 64 px."""
_PATCHES = ((192, 16), (48, 8), (24, 4), (0, 2))
"""The side of patches for images from a side on: 6 to 22 patches a side."""
_SMALLEST = 16
_MOST_EPOCHS = 300
_RESIDENT_BYTES = 2 * 10**9
"""Of decoded training images, up to which they stay in memory."""


class Images(NamedTuple):
    """The images: how many are trained and evaluated on, their classes, and their typical shorter side in pixels.

    ``whole`` is ``train`` without the subset that was asked for. ``held_out`` tells that the evaluation images are
    taken out of the training ones.
    """

    train: int
    whole: int
    evaluation: int
    classes: int
    side: int
    held_out: bool


class Machine(NamedTuple):
    """What trains: cores, whether there is a GPU, and whether the weights of `PRETRAINED` are on disk."""

    cores: int
    has_gpu: bool
    has_weights: bool


PRETRAINED = "resnet50.a1_in1k"
"""The teacher that is fine-tuned, on a GPU and at 224 px, where its weights are at hand."""


class Wanted(NamedTuple):
    """What the user has set, of what the other sizes follow from; None: nothing."""

    image_size: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    holdout: float | None = None
    full_epochs: bool = False


class Sizes(NamedTuple):
    """What a recipe may name by a dollar."""

    image_size: int
    holdout: float | None
    loader: str
    pad_crop: int
    patch_size: int
    width: int
    """Of students and of the attention of 4 heads."""
    width_of_9: int
    """Of students with 9 heads."""
    wide: int
    """Of an encoder that teaches one of ``width``."""
    narrow: int
    """Of the decoder of an encoder of ``width``."""
    depth: int
    mlp_ratio: int
    early_blocks: int
    """Blocks with a convolutional bias."""
    pairs: list[Any]
    """A student's block, from 1, and the stage of a CNN that it learns from."""
    batch_size: int
    epochs: int
    long_epochs: int
    """Of pre-training."""
    warmup_epochs: float
    interval: int
    """Epochs between two evaluations, and between two checkpoints."""
    workers: int
    threads: int | None
    """One on a CPU: at these sizes a second one waits more than it computes, most of all where other work runs."""
    cnn: str
    cnn_kwargs: dict[str, Any]
    cnn_pretrained: bool
    cnn_lr: float
    inn: str
    inn_kwargs: dict[str, Any]


def derive(images: Images, machine: Machine, wanted: Wanted = Wanted()) -> Sizes:  # noqa: B008 (immutable)
    """Derive the sizes of a run; what is ``wanted`` is taken as it is, and the rest fitted to it.

    Raises `ConfigError` where the batch that is wanted is larger than an epoch, or the image has no patches.
    """
    gpu = machine.has_gpu
    size = wanted.image_size or _image_size(images.side, gpu)
    patch = _patch(size)
    seen = images.whole if wanted.full_epochs else images.train
    usual = _batch_size(seen, 64 if gpu else 32)
    batch = wanted.batch_size or usual
    if batch > seen:
        raise ConfigError(f"train.batch_size: {batch} is larger than an epoch of {seen} images; set it to {usual}")
    epochs = wanted.epochs or _epochs(seen // batch, 20_000 if gpu else 1_500)
    width, depth = (192, 12) if gpu else (64, 4)
    early, late = (4, 8) if gpu else (2, 3)
    cnn, cnn_kwargs = _cnn(size, patch, gpu, machine.has_weights)
    return Sizes(
        image_size=size,
        holdout=HOLDOUT if images.held_out and wanted.holdout is None else wanted.holdout,
        loader="resident" if images.train * 3 * size**2 <= _RESIDENT_BYTES else "streamed",
        pad_crop=size // 8,
        patch_size=patch,
        width=width,
        width_of_9=216 if gpu else 54,
        wide=2 * width,
        narrow=3 * width // 4,
        depth=depth,
        mlp_ratio=4 if gpu else 2,
        early_blocks=2 * depth // 3 + (0 if gpu else 1),
        pairs=[[early, "layer2"], [late, "layer3"]],
        batch_size=batch,
        epochs=epochs,
        long_epochs=2 * epochs,
        warmup_epochs=round(epochs / 20, 2),
        interval=max(epochs // 20, 1),
        workers=min(machine.cores, 16),
        threads=None if gpu else 1,
        cnn=cnn,
        cnn_kwargs=cnn_kwargs,
        cnn_pretrained=cnn == PRETRAINED,
        cnn_lr=1e-4 if cnn == PRETRAINED else 1e-3 if gpu else 4e-3,
        inn="rednet26" if gpu and patch == 16 else "rednet_tiny",
        inn_kwargs={} if gpu and patch == 16 else {"stem_stride": 2 * _stem_stride(patch)},
    )


def _image_size(side: int, has_gpu: bool) -> int:
    """Return the images' own side, at most what the machine can do, in an even number of patches, and at least 16."""
    side = max(min(side, FULL_SIZE if has_gpu else CPU_SIZE), _SMALLEST)
    two = 2 * _usual_patch(side)  # the agent CNN of Bootstrapping ViTs halves the student's grid
    return round(side / two) * two


def _usual_patch(size: int) -> int:
    return next(patch for least, patch in _PATCHES if size >= least)


def _patch(size: int) -> int:
    """Return the side of the patches that cover an image: the usual one, or what divides the image's and is nearest."""
    fitting = [patch for patch in range(2, size // 2 + 1) if size % patch == 0]
    if not fitting:
        raise ConfigError(f"data.image_size: {size} px cannot be cut into patches; set it to {size + 1}")
    return min(fitting, key=lambda patch: abs(patch - _usual_patch(size)))


def _batch_size(images: int, most: int) -> int:
    """Return a power of two that gives an epoch two updates or more: even, as Mixup needs it."""
    return max(2, min(most, 1 << max(images // 2, 1).bit_length() - 1))


def _epochs(updates_per_epoch: int, updates: int) -> int:
    return min(max(math.ceil(updates / updates_per_epoch), 1), _MOST_EPOCHS)


def _cnn(size: int, patch: int, has_gpu: bool, has_weights: bool) -> tuple[str, dict[str, Any]]:
    """Return the teacher: its maps of ``layer3`` have the student's grid, or nearly."""
    if has_gpu and patch == 16:
        return (PRETRAINED if has_weights and size == FULL_SIZE else "resnet18"), {}
    if has_gpu:
        return "resnet18_cifar", {"stem_stride": _stem_stride(patch)}
    return "resnet8_tiny", {"stem_stride": _stem_stride(patch)}


def _stem_stride(patch: int) -> int:
    return max(patch // 4, 1)
