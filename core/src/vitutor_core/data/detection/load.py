"""The two loaders of images with objects, and the data that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.detection.annotated import AnnotatedSource, AnnotatedSplit, box_of
from vitutor_core.data.detection.open import fingerprint, open_annotated, usable
from vitutor_core.data.detection.view import View, draw_views, see, see_mask, whole
from vitutor_core.data.loaders.streamed import StreamedEvalLoader, StreamedTrainLoader
from vitutor_core.data.sampler import KeyedSampler, SampleKeys
from vitutor_core.data.sources.statistics import IMAGENET
from vitutor_core.data.transfer import to_device
from vitutor_core.data.types import Batch, Data, DataInfo, Objects, Position
from vitutor_core.errors import ConfigError
from vitutor_core.schema import DetectionConfig, RunConfig, RuntimeConfig

_FILL = (round(255 * IMAGENET.mean[0]), round(255 * IMAGENET.mean[1]), round(255 * IMAGENET.mean[2]))


def build_annotated_data(config: RunConfig, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Data:
    """Open the source and make the loaders of process ``rank`` of ``world_size``; raises as `open_annotated` does."""
    detect: DetectionConfig | None = getattr(config, "detect", None)
    if detect is None:
        raise ConfigError(f"data.source: {config.data.source} has boxes and masks; `vitutor detect` trains on them")
    _refuse(config)
    source = open_annotated(config.data.source)
    trained_on = usable(source.train)
    info = DataInfo(
        name=source.name,
        class_names=source.class_names,
        image_size=config.data.image_size,
        channels=3,
        mean=IMAGENET.mean,
        std=IMAGENET.std,
        num_train=len(trained_on),
        num_eval=len(source.evaluation),
        fingerprint=fingerprint(source),
    )
    sampler = KeyedSampler(
        len(trained_on),
        seed=config.view_seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=rank,
        world_size=world_size,
    )
    workers = 0 if config.data.loader == "resident" else config.runtime.workers
    runtime = config.runtime.model_copy(update={"workers": workers})
    side, normalise = info.image_size, Normalise(info.mean, info.std, device)
    draw = partial(draw_views, side=side, scale=detect.scale, flip=config.augment.flip)
    seen = _Seen(source, trained_on, draw, side, normalise)
    own = np.arange(rank, info.num_eval, world_size)
    return Data(
        info,
        StreamedTrainLoader(seen.images, seen.batch, sampler, side, runtime, device),
        AnnotatedEvalLoader(source, own, side, normalise, runtime, device),
    )


class _Seen:
    """What training shows of the images of a source: large-scale jitter and flips, the objects with the pixels."""

    def __init__(
        self,
        source: AnnotatedSource,
        subset: NDArray[np.int64],
        draw: Callable[[SampleKeys, NDArray[np.int64]], list[View]],
        side: int,
        normalise: Normalise,
    ) -> None:
        self._split, self._subset, self._draw = source.train, subset, draw
        self._labels = {category.id: label for label, category in enumerate(source.categories)}
        self._side, self._normalise = side, normalise

    def images(self, keys: SampleKeys) -> Tensor:
        """Decode the views of a micro-batch: (B, 3, S, S) uint8."""
        return _stacked([see(self._split.read(index), view, self._side, _FILL) for index, view in self._views(keys)])

    def batch(self, images: Tensor, keys: SampleKeys, _: Position) -> Batch:
        """Add to these images, on their device, what they show."""
        objects = tuple(self._objects(index, view, images.device) for index, view in self._views(keys))
        indices = to_device(keys.indices, images.device)
        return Batch(self._normalise(images), torch.zeros_like(indices), indices, objects=objects)

    def _views(self, keys: SampleKeys) -> list[tuple[int, View]]:
        """Return which images a micro-batch shows, by their numbers in the split, and what of each."""
        chosen = self._subset[keys.indices]
        return list(zip(chosen.tolist(), self._draw(keys, self._split.sizes[chosen]), strict=True))

    def _objects(self, index: int, view: View, device: torch.device) -> Objects:
        found = [
            (self._labels[annotation["category_id"]], seen)
            for annotation, mask in self._split.objects(index)
            if (seen := see_mask(mask, view, self._side)).any()
        ]
        boxes = np.array([box_of(mask) for _, mask in found], dtype=np.float32).reshape(-1, 4)
        masks = np.array([mask for _, mask in found], dtype=np.uint8).reshape(-1, self._side, self._side)
        labels = np.array([label for label, _ in found], dtype=np.int64)
        return Objects(*(torch.from_numpy(part).to(device) for part in (boxes, labels, masks)))


class AnnotatedEvalLoader(StreamedEvalLoader):
    """Evaluation batches: whole images, and their numbers in the split instead of class ids; see `EvalLoader`."""

    def __init__(
        self,
        source: AnnotatedSource,
        indices: NDArray[np.int64],
        side: int,
        normalise: Normalise,
        runtime: RuntimeConfig,
        device: torch.device,
    ) -> None:
        fetch = partial(_whole_images, source.evaluation, side)
        super().__init__(fetch, indices, np.arange(len(source.evaluation)), side, normalise, runtime, device)
        self.source, self._side = source, side

    def view(self, index: int) -> View:
        """Return how an image is seen."""
        return _whole(self.source.evaluation, index, self._side)


def _whole(split: AnnotatedSplit, index: int, side: int) -> View:
    width, height = split.sizes[index].tolist()
    return whole(width, height, side)


def _whole_images(split: AnnotatedSplit, side: int, indices: NDArray[np.int64]) -> Tensor:
    return _stacked([see(split.read(index), _whole(split, index, side), side, _FILL) for index in indices.tolist()])


def _stacked(squares: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(squares).transpose(0, 3, 1, 2).copy())


def _refuse(config: RunConfig) -> None:
    """Raise `ConfigError` for fields that mean nothing for images with objects, where they are set."""
    known = {"data": {"source", "image_size", "loader", "view_seed"}, "augment": {"flip"}}
    for section, names in known.items():
        values = getattr(config, section)
        for name, field in type(values).model_fields.items():
            if name not in names and getattr(values, name) != field.default:
                raise ConfigError(f"{section}.{name}: is not for images with boxes; leave it out")
