"""The device-side end of both loaders: normalise, erase, then mix images and soften targets with timm's Mixup."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from vitutor_core.data import keyed
from vitutor_core.data.augment.erasing import RandomErasing
from vitutor_core.data.sampler import SampleKeys
from vitutor_core.data.types import Batch, DataInfo, Position
from vitutor_core.schema import AugmentConfig, RunConfig


class Normalise:
    """Map grey levels (B, 3, H, W), of any dtype, to ``(x / 255 - mean) / std`` in float32."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self._mean = torch.tensor(mean, device=device).mul_(255)[:, None, None]
        self._scale = torch.tensor(std, device=device).mul_(255).reciprocal_()[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        return torch.sub(images, self._mean).mul_(self._scale)


class Finish:
    """Turn augmented images into a `Batch`: normalise, erase, mix."""

    def __init__(self, config: RunConfig, info: DataInfo, labels: Tensor, rank: int) -> None:
        """Prepare for the device of ``labels``, the (N,) int64 class ids of the training subset."""
        augment, device = config.augment, labels.device
        self._labels = labels
        self._normalise = Normalise(info.mean, info.std, device)
        self._erase = None
        if augment.random_erasing:
            self._erase = RandomErasing(augment.random_erasing, info.image_size, config.view_seed, device)
        self._mix = None
        if augment.mixup or augment.cutmix or augment.label_smoothing:
            self._mix = Mix(augment, info.num_classes, config.view_seed, rank)

    def pixels(self, images: Tensor, keys: SampleKeys) -> Tensor:
        """Normalise and erase (B, 3, S, S) grey levels; the views may be those of several micro-batches."""
        images = self._normalise(images)
        return images if self._erase is None else self._erase(images, keys)

    def batch(self, images: Tensor, indices: Tensor, position: Position) -> Batch:
        """Mix the `pixels` of one micro-batch, in place; (B,) ``indices``."""
        targets = self._labels.index_select(0, indices)
        if self._mix is not None:
            images, targets = self._mix(images, targets, position)
        return Batch(images, targets, indices)


class Mix:
    """Mixup (arXiv:1710.09412), CutMix (arXiv:1905.04899) and label smoothing by timm, one draw per micro-batch."""

    def __init__(self, config: AugmentConfig, num_classes: int, seed: int, rank: int) -> None:
        from timm.data.mixup import Mixup, mixup_target

        self._seed = seed
        self._rank = rank
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mix_probability,
                switch_prob=config.mix_switch,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )
        self._soften = partial(mixup_target, num_classes=num_classes, smoothing=config.label_smoothing)

    def __call__(self, images: Tensor, labels: Tensor, position: Position) -> tuple[Tensor, Tensor]:
        """Mix (B, 3, H, W) images, in place; return them and the (B, num_classes) float32 targets.

        The position is the key of the draw, together with seed and rank.
        """
        if self._mixup is None:
            return images, self._soften(labels)
        epoch, step, micro = position
        # timm draws from NumPy's global generator, which is not ours to change.
        state = np.random.get_state()  # noqa: NPY002  # timm's generator
        np.random.seed(keyed.seed_from(self._seed, epoch, step, self._rank, micro))  # noqa: NPY002  # timm's generator
        try:
            mixed, targets = self._mixup(images, labels)
        finally:
            np.random.set_state(state)  # noqa: NPY002  # timm's generator
        return mixed, targets
