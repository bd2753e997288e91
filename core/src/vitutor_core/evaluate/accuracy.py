"""Accuracy, cross-entropy and calibration over an evaluation set, and which of its images were answered right."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitutor_core.data.types import EvalLoader
from vitutor_core.distributed import sum_over_processes, world
from vitutor_core.errors import ConfigError, DataError, NonFiniteError
from vitutor_core.models.modes import evaluation_mode

CALIBRATION_BINS = 15


class Measured(NamedTuple):
    """Metrics by name; and, for each accuracy among them, which images were right, as `pack` writes it."""

    metrics: dict[str, float]
    correct: dict[str, str]


def measure(model: nn.Module, averaged: nn.Module | None, loader: EvalLoader, **options: Any) -> Measured:
    """Measure a model as `evaluate` does and, under names that begin with ``ema_``, the average of its weights."""
    found: dict[str, float] = {}
    correct: dict[str, str] = {}
    for prefix, one in (("", model), ("ema_", averaged)):
        if one is not None:
            metrics, right = _evaluate(one, loader, **options)
            found |= {prefix + name: value for name, value in metrics.items()}
            correct[f"{prefix}top1"] = pack(right)
    return Measured(found, correct)


def evaluate(
    model: nn.Module,
    loader: EvalLoader,
    *,
    num_classes: int,
    device: torch.device | str,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> dict[str, float]:
    """Evaluate ``model`` on every image of ``loader``, over all processes.

    Returns ``top1`` and ``top5`` in percent (``top5`` is top-k with k = min(5, classes)), ``loss`` (mean
    cross-entropy in nats, no label smoothing), ``ece`` (expected calibration error in percent, Guo et al. 2017,
    with 15 equal-width bins of the confidence) and ``images`` (their number).
    The model runs in evaluation mode and gets its training mode back.

    Raises `ConfigError` if the model has another number of classes than the data, `DataError` if there are no
    images, and `NonFiniteError` if any logit is NaN or infinite, since such an image is neither right nor wrong.
    """
    return _evaluate(model, loader, num_classes=num_classes, device=device, precision=precision)[0]


def pack(correct: Tensor) -> str:
    """Write (N,) booleans as hexadecimal digits, four images to a digit, the first image in its highest bit."""
    return np.packbits(correct.numpy()).tobytes().hex()


def _evaluate(
    model: nn.Module,
    loader: EvalLoader,
    *,
    num_classes: int,
    device: torch.device | str,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> tuple[dict[str, float], Tensor]:
    """Return what `evaluate` returns, and which images of the set were right: (N,) booleans, in the set's order."""
    # Images, loss, top-1, top-k, not finite; then, per bin, the sums of the confidence and of right answers.
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    bins = torch.zeros(CALIBRATION_BINS, 2, dtype=torch.float64, device=device)
    right = [torch.zeros(0, dtype=torch.bool, device=device)]
    with evaluation_mode(model), torch.inference_mode():
        for images, targets in loader:
            with torch.autocast(totals.device.type, torch.bfloat16, enabled=precision == "bf16"):
                logits = model(images.to(device, non_blocking=True))
            if logits.shape != (len(targets), num_classes):
                raise ConfigError(
                    f"evaluation: the model gives logits of shape {tuple(logits.shape)} for {len(targets)} images "
                    f"of {num_classes} classes; build it with num_classes={num_classes}"
                )
            right.append(_count(logits.float(), targets.to(device, non_blocking=True), totals, bins))
    metrics = _metrics(totals, bins)
    return metrics, _in_order(torch.cat(right), int(metrics["images"]))


def _in_order(own: Tensor, images: int) -> Tensor:
    """Put the answers of all processes into the order of the set; see `EvalLoader`."""
    rank, size = world()
    if size == 1:
        return own.cpu()
    everything = torch.zeros(images, dtype=torch.uint8, device=own.device)
    everything[rank::size] = own.to(torch.uint8)
    return sum_over_processes(everything).bool().cpu()


def _count(logits: Tensor, targets: Tensor, totals: Tensor, bins: Tensor) -> Tensor:
    """Add a batch, (B, K) float32 logits and (B,) class ids, to the sums and return which first answers are right.

    Nothing is read back from the device.
    """
    log_probabilities = F.log_softmax(logits, dim=1)
    confidence, prediction = log_probabilities.exp().max(dim=1)
    correct = prediction == targets
    within_k = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]).any(dim=1)
    loss = F.nll_loss(log_probabilities, targets, reduction="none")
    broken = ~logits.isfinite().all(dim=1)
    # Tied logits may be ordered differently by max and topk; a right first answer is within any k.
    columns = (torch.ones_like(loss), loss, correct, within_k | correct, broken)
    totals += torch.stack([column.double() for column in columns]).sum(dim=1)
    # The bins are (0, 1/15], (1/15, 2/15], ..., so that a confidence of 1 lies in the last one.
    bin_of = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
    # A product with the one-hot matrix is deterministic on every device; scattered additions are not.
    members = F.one_hot(bin_of, CALIBRATION_BINS).double()
    bins += members.T @ torch.stack([confidence, correct], dim=1).double()
    return correct


def _metrics(totals: Tensor, bins: Tensor) -> dict[str, float]:
    sums = sum_over_processes(torch.cat([totals, bins.flatten()]))
    images, loss, top1, top5, broken, *per_bin = sums.tolist()
    if images == 0:
        raise DataError("evaluation: the evaluation set has no images; check data.source")
    if broken:
        raise NonFiniteError(
            f"evaluation: NaN or infinite logits for {broken:.0f} of {images:.0f} images; "
            "the weights have diverged: lower optim.lr or go back to an earlier checkpoint"
        )
    gaps = (abs(confidence - correct) for confidence, correct in zip(per_bin[::2], per_bin[1::2], strict=True))
    return {
        "top1": 100 * top1 / images,
        "top5": 100 * top5 / images,
        "loss": loss / images,
        "ece": 100 * sum(gaps) / images,
        "images": images,
    }
