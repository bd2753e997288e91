"""What the data package hands to the rest: `DataInfo`, `Batch`, and the interface of the two loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor  # sources are opened before torch is imported

_NOTHING: Mapping[str, Any] = {}  # nobody writes there; torch.compile cannot follow a MappingProxyType


def _covered(_: NDArray[np.int64]) -> str:
    return ""


@dataclass(frozen=True)
class Split:
    """The images and labels of one split, before subsets and augmentation.

    ``read(i)`` decodes image ``i`` to 8-bit RGB; ``where(i)`` names it (a path, or a shard and row) for messages.
    ``content_hash`` identifies images and labels of the whole split. Of image files it covers names and sizes alone, as
    sets are too large to be read at every start; ``contents(indices)`` reads and hashes the bytes of these files, and
    is empty for other sources.
    """

    labels: NDArray[np.int64]
    read: Callable[[int], Image.Image]
    where: Callable[[int], str]
    content_hash: str
    contents: Callable[[NDArray[np.int64]], str] = _covered


@dataclass(frozen=True)
class Source:
    """A data source: its classes, its normalisation constants (of pixels in [0, 1]) and its two splits."""

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split
    evaluation: Split
    notes: tuple[str, ...] = ()
    """What its user should know, such as files that were passed over."""
    evaluated_on: str | None = None
    """The name of the evaluation split, where there are several that it could be."""


@dataclass(frozen=True)
class DataInfo:
    """What a model has to know of the data.

    ``mean`` and ``std`` are per channel, of pixel values in [0, 1]; batches are normalised with them.
    ``fingerprint`` identifies the images and labels that are trained on, subset included.
    """

    name: str
    class_names: tuple[str, ...]
    image_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_train: int
    num_eval: int
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Objects(NamedTuple):
    """The objects of one image, on the device.

    boxes: (n, 4) float32, left, top, right and bottom in pixels of the batch's image. labels: (n,) int64 class ids.
    masks: (n, S, S) uint8, 1 where the object is seen.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class Batch(NamedTuple):
    """One batch, on the device.

    images: (B, C, H, W) float32, augmented, mixed and normalised.
    targets: (B,) int64 class ids, or (B, K) float32 where Mixup, CutMix or label smoothing is on.
    indices: (B,) int64 positions in the training subset.
    taught: the logits (B, K) of teachers by role, where they are known already; see `distill.taught`.
    objects: what is in each image, of data for detection, whose ``targets`` mean nothing.
    drawn: tensors that the method drew for these images, by name; see `train.method.Method.prepare`.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    taught: Mapping[str, Tensor] = _NOTHING
    objects: tuple[Objects, ...] = ()
    drawn: Mapping[str, tuple[Any, ...]] = _NOTHING


Position = tuple[int, int, int]
"""Of a micro-batch: epoch, step and its number in the update."""


class WaitGivenUp(Exception):
    """A batch was not there yet, and nobody wants to wait for it."""


def never() -> bool:
    """Wait as long as it takes."""
    return False


class TrainLoader(Protocol):
    """Training batches whose content is a function of (seed, epoch, step) alone."""

    steps_per_epoch: int
    """Updates in an epoch; the last incomplete batch is dropped."""

    def epoch(
        self, epoch: int, *, start_step: int = 0, give_up: Callable[[], bool] = never
    ) -> Iterator[tuple[Batch, ...]]:
        """Yield, for each update from ``start_step`` on, this process's micro-batches (``accumulate`` of them).

        Raises `WaitGivenUp` where a batch is waited for and ``give_up`` says so.
        """

    def close(self) -> None:
        """Shut workers down."""


class EvalLoader(Protocol):
    """Evaluation batches of this process: every image exactly once over all processes, no padding.

    Process r of w has the images r, r + w, r + 2w, ... of the set, in that order.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images (B, C, H, W), normalised, and class ids (B,) int64."""


@dataclass(frozen=True)
class Data:
    """A prepared data set: what the models must know, and its two loaders.

    ``contents`` identifies the bytes of image files, which `DataInfo.fingerprint` does not cover; it is empty where
    there are none, and where the loader does not read all of them at the start.
    """

    info: DataInfo
    train: TrainLoader
    evaluation: EvalLoader
    contents: str = ""
