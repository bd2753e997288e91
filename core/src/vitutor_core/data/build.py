"""From a config to the two loaders."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vitutor_core.data.augment import randaugment
from vitutor_core.data.augment.mixing import Finish, Normalise
from vitutor_core.data.augment.pipeline import Augment
from vitutor_core.data.augment.resample import eval_transform
from vitutor_core.data.detection.load import build_annotated_data
from vitutor_core.data.detection.open import is_annotated
from vitutor_core.data.loaders.resident import ResidentEvalLoader, ResidentTrainLoader, load_eval, load_train
from vitutor_core.data.loaders.streamed import StreamedEvalLoader, decode_whole, streamed_train
from vitutor_core.data.sampler import KeyedSampler
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.sources.subsets import fingerprint, subset_indices
from vitutor_core.data.types import Data, DataInfo, EvalLoader, Source, Split, TrainLoader
from vitutor_core.errors import ConfigError
from vitutor_core.schema import AugmentConfig, DataConfig, RunConfig, RuntimeConfig


class Planned(NamedTuple):
    """What is known of a run's data before an image is decoded; ``indices`` are those of the training subset."""

    source: Source
    indices: NDArray[np.int64]
    sampler: KeyedSampler
    info: DataInfo


def plan_data(config: RunConfig, *, rank: int = 0, world_size: int = 1) -> Planned:
    """Open the source and choose the subset and its order; raises as `build_data` does."""
    check_augment(config.augment)
    source = open_source(config.data)
    indices = subset_indices(source.train.labels, config.data)
    sampler = KeyedSampler(
        len(indices),
        seed=config.view_seed,
        batch_size=config.train.batch_size,
        num_views=len(source.train.labels) if config.train.epoch_length == "full" else None,
        balanced=source.train.labels[indices] if config.data.balance == "sampling" else None,
        accumulate=config.train.accumulate,
        repeats=config.augment.repeats,
        rank=rank,
        world_size=world_size,
    )
    mixes = config.augment.mixup > 0 or config.augment.cutmix > 0
    if mixes and sampler.micro_batch_size % 2:
        raise ConfigError(
            f"train.batch_size: a micro-batch of one process has {sampler.micro_batch_size} images, but Mixup and "
            "CutMix pair images and need an even number"
        )
    info = DataInfo(
        name=source.name,
        class_names=source.class_names,
        image_size=config.data.image_size,
        channels=3,
        mean=source.mean,
        std=source.std,
        num_train=len(indices),
        num_eval=len(source.evaluation.labels),
        fingerprint=fingerprint(source, indices),
    )
    return Planned(source, indices, sampler, info)


def build_data(config: RunConfig, *, device: torch.device, rank: int = 0, world_size: int = 1) -> Data:
    """Open the source, choose the subset and make the loaders of process ``rank`` of ``world_size``.

    Raises ConfigError for settings that cannot work together, DataError for bad data, and ResourceError if the
    resident images do not fit into memory.
    """
    if is_annotated(config.data.source) or getattr(config, "detect", None) is not None:
        return build_annotated_data(config, device=device, rank=rank, world_size=world_size)
    source, indices, sampler, info = plan_data(config, rank=rank, world_size=world_size)
    labels = torch.from_numpy(source.train.labels[indices]).to(device)
    finish = Finish(config, info, labels, rank)
    own = np.arange(rank, info.num_eval, world_size)
    train: TrainLoader
    contents = ("", "")
    is_resident = config.data.loader == "resident"
    augment = Augment(config.data, config.augment, source.mean, device, crops=is_resident)
    if is_resident:
        contents = (source.train.contents(indices), source.evaluation.contents(np.arange(info.num_eval)))
        cropped = config.augment.crop_scale is not None
        images = load_train(source.train, indices, config.data, cropped=cropped, device=device, contents=contents[0])
        train = ResidentTrainLoader(images, sampler, augment, finish)
    else:
        train = streamed_train(
            source.train,
            indices,
            config,
            sampler=sampler,
            augment=augment,
            finish=finish,
            device=device,
            in_workers=device.type == "cpu",
        )
    evaluation = eval_loader(
        source.evaluation,
        own,
        config.data,
        config.runtime,
        normalise=Normalise(info.mean, info.std, device),
        device=device,
        contents=contents[1],
    )
    return Data(info, train, evaluation, "".join(contents))


def eval_loader(
    split: Split,
    indices: NDArray[np.int64],
    config: DataConfig,
    runtime: RuntimeConfig,
    *,
    normalise: Normalise,
    device: torch.device,
    contents: str | None = None,
) -> EvalLoader:
    """Make the loader of the images ``indices`` of ``split`` as they are evaluated; ``contents``: see `decode`."""
    if config.loader == "streamed":
        fetch = partial(decode_whole, split, eval_transform(config))
        return StreamedEvalLoader(fetch, indices, split.labels, config.image_size, normalise, runtime, device)
    images = load_eval(split, indices, config, device=device, contents=contents)
    labels = torch.from_numpy(split.labels[indices]).to(device)
    return ResidentEvalLoader(images, labels, runtime.eval_batch_size, normalise)


def check_augment(config: AugmentConfig) -> None:
    """Raise ConfigError for augmentation settings that no loader can follow."""
    if config.rand_augment is not None:
        randaugment.parse(config.rand_augment)
    if config.crop_scale is not None:
        if config.pad_crop:
            raise ConfigError("augment.pad_crop and augment.crop_scale exclude each other; set one to 0 or null")
        low, high = config.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"augment.crop_scale: [{low}, {high}] is not a range; write 0 < low <= high <= 1")
        low, high = config.crop_aspect
        if not 0 < low <= high:
            raise ConfigError(f"augment.crop_aspect: [{low}, {high}] is not a range; write 0 < low <= high")
