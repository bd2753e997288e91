"""Invert the teacher for one batch of images: noise, phases, jitter, clamp. A pure function of seed and batch index."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.generation.config import GenerationConfig, PhaseConfig
from dearkd.generation.objective import BatchNormStatistics, objective, view_of
from vitutor_core.data import keyed
from vitutor_core.data.types import DataInfo
from vitutor_core.errors import NonFiniteError

# Tell the draws of one seed apart.
_CLASSES, _NOISE, _JITTER = 1, 2, 3


class GeneratedBatch(NamedTuple):
    """A finished batch.

    pixels: (B, C, H, W) in [0, 1]. labels, predictions: (B,) class ids, assigned and given by the teacher to the
    images as they are written. confidences: (B,), its probability of the prediction. log: figures by iteration.
    """

    pixels: Tensor
    labels: Tensor
    predictions: Tensor
    confidences: Tensor
    log: list[dict[str, float]]


def generate_batch(
    teacher: nn.Module,
    info: DataInfo,
    config: GenerationConfig,
    index: int,
    *,
    device: torch.device,
    competitor: Callable[[Tensor], Tensor] | None = None,
    tick: Callable[[int, dict[str, float]], None] = lambda _done, _figures: None,
) -> GeneratedBatch:
    """Optimise batch ``index``; the images are the last iterate, as the terms of different phases do not compare.

    ``teacher`` is frozen and in evaluation mode; ``info`` has its classes, size and normalisation. ``tick`` is called
    after each iteration with the number done and the newest line of the log. Raises `NonFiniteError` where a line of
    the log has a loss that is none.
    """
    labels = batch_labels(config, info.num_classes, index).to(device)
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (info.mean, info.std))
    first = config.phases[0].shrink if config.low_resolution == "own" else 1
    images = _noise(config, info, index, side=info.image_size // first).to(device)
    log: list[dict[str, float]] = []
    done = 0
    with BatchNormStatistics(teacher, first=config.terms.first_bn) as statistics:
        for number, phase in enumerate(config.phases):
            side, shrink = info.image_size, phase.shrink
            if config.low_resolution == "own":
                side, shrink = side // shrink, 1
            if images.shape[-1] != side:
                images = F.interpolate(images, (side, side), mode="bilinear", align_corners=False)
            images = images.detach().requires_grad_()
            optimizer = torch.optim.Adam([images], lr=phase.lr, betas=config.betas, eps=1e-8)
            for iteration in range(phase.iterations):
                optimizer.param_groups[0]["lr"] = learning_rate(phase, iteration)
                roll, mirror = _jitter(config, phase, index, number, iteration)
                planes = images.expand(-1, info.channels, -1, -1)
                outcome = objective(
                    teacher,
                    statistics,
                    view_of(planes, shrink=shrink, roll=roll, mirror=mirror),
                    labels,
                    config.terms,
                    competitor,
                )
                (images.grad,) = torch.autograd.grad(outcome.loss, images)
                optimizer.step()
                if config.clamp:
                    clamp_pixels(images, mean, std)
                done += 1
                if done % config.runtime.log_every == 0 or done == config.iterations:
                    accuracy = (outcome.logits.argmax(1) == labels).float().mean()
                    figures = {"loss": outcome.loss, **outcome.parts, "teacher_accuracy": accuracy}
                    log.append({"iteration": done, **{name: value.item() for name, value in figures.items()}})
                    if not math.isfinite(log[-1]["loss"]):
                        raise NonFiniteError(
                            f"batch {index}: the loss is {log[-1]['loss']} at iteration {done}; lower lr"
                        )
                tick(done, log[-1] if log else {})
    images = images.detach().expand(-1, info.channels, -1, -1)
    pixels = (images * std + mean).clamp(0, 1)
    # As they will be read: 8 bits.
    written = ((pixels * 255).round() / 255 - mean) / std
    with torch.no_grad():
        confidences, predictions = teacher(written).softmax(dim=1).max(dim=1)
    return GeneratedBatch(pixels.cpu(), labels.cpu(), predictions.cpu(), confidences.cpu(), log)


def batch_labels(config: GenerationConfig, num_classes: int, index: int) -> Tensor:
    """Return the labels (B,) of a batch: distinct classes, ``images_per_class`` times each.

    Batches deal the classes out in rounds, each round in a random order, so that classes stay balanced: within a round
    every class comes once, and the last batch of a round is filled up with the first classes of its order.
    """
    per_batch = config.classes_per_batch
    per_round = math.ceil(num_classes / per_batch)
    order = keyed.permutation(num_classes, config.seed, _CLASSES, index // per_round)
    start = index % per_round * per_batch
    chosen = [order[position % num_classes] for position in range(start, start + per_batch)]
    return torch.tensor(chosen).repeat_interleave(config.images_per_class)


def learning_rate(phase: PhaseConfig, iteration: int) -> float:
    """Return the learning rate of an iteration, from 0: linear warm-up to the peak, then a half cosine to 0."""
    if phase.schedule == "constant":
        return phase.lr
    if iteration < phase.warmup:
        return phase.lr * (iteration + 1) / phase.warmup
    done = (iteration - phase.warmup) / (phase.iterations - phase.warmup)
    return phase.lr * (1 + math.cos(math.pi * done)) / 2


@torch.no_grad()
def clamp_pixels(images: Tensor, mean: Tensor, std: Tensor) -> None:
    """Keep images (B, C, H, W) in place between the normalised values of black and white, per channel."""
    channels = slice(None, images.shape[1])
    low, high = -mean / std, (1 - mean) / std
    images.clamp_(low[:, channels], high[:, channels])


def _noise(config: GenerationConfig, info: DataInfo, index: int, *, side: int) -> Tensor:
    """Draw the first images from N(0, 1), in normalised pixels; on the CPU, so that every device starts alike."""
    generator = torch.Generator().manual_seed(keyed.seed_from(config.seed, _NOISE, index))
    channels = 1 if config.grey else info.channels
    return torch.randn(config.batch_size, channels, side, side, generator=generator)


def _jitter(
    config: GenerationConfig, phase: PhaseConfig, index: int, number: int, iteration: int
) -> tuple[tuple[int, int], bool]:
    """Draw the roll (rows, columns), in pixels of the view, and whether to mirror."""
    key = (config.seed, _JITTER, index, number, iteration)
    reach = config.jitter // phase.shrink
    rows, columns = (int(keyed.uniform(*key, draw) * (2 * reach + 1)) - reach for draw in (0, 1))
    return (rows, columns), bool(keyed.uniform(*key, 2) < config.flip)
