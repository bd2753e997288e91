"""The objective of one iteration (eq. 8): view of the images, one pass of the teacher, all terms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dearkd.generation.config import TermsConfig
from dearkd.generation.losses import (
    bn_statistics_loss,
    competition_loss,
    intra_divergence,
    l2_prior,
    total_variation,
)
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates


class BatchNormStatistics:
    """Collects R_BN while a network runs; a context manager, so that its hooks never outlive the generation.

    The hooks see the inputs of all batch norms (timm's fused ones are subclasses of torch's). The first in the order of
    the modules counts ``first`` times.

    Raises `ConfigError` for a network without batch norms or without stored statistics.
    """

    def __init__(self, model: nn.Module, *, first: float) -> None:
        layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        if not layers or any(layer.running_mean is None for layer in layers):
            raise ConfigError(
                f"teacher {type(model).__name__}: no BatchNorm statistics to invert; choose a CNN with BatchNorm"
            )
        self._weights: dict[nn.Module, float] = dict.fromkeys(layers, 1.0)
        self._weights[layers[0]] = first
        self._terms: list[Tensor] = []
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        for layer in self._weights:
            self._hooks.callback(layer.register_forward_pre_hook(self._collect).remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.close()

    def take(self) -> Tensor:
        """Return R_BN of the pass since the last call, and forget it."""
        total = torch.stack(self._terms).sum()
        self._terms = []
        return total

    def _collect(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm: Any = layer
        term = bn_statistics_loss(inputs[0], norm.running_mean, norm.running_var)
        self._terms.append(self._weights[layer] * term)


class Outcome(NamedTuple):
    """What one iteration gives.

    loss: the scalar to minimise. parts: its unweighted terms and further figures, scalars, for the log.
    logits: the teacher's, (B, K).
    """

    loss: Tensor
    parts: dict[str, Tensor]
    logits: Tensor


def view_of(images: Tensor, *, shrink: int, roll: tuple[int, int], mirror: bool) -> Tensor:
    """Return what the teacher sees of images (B, C, H, W).

    Averaged over ``shrink`` x ``shrink`` pixels, rolled by (rows, columns) of the result, then mirrored. All terms are
    taken on it, so the seam of the roll enters TV.
    """
    if shrink > 1:
        images = F.avg_pool2d(images, shrink)
    images = torch.roll(images, roll, dims=(2, 3))
    return images.flip(3) if mirror else images


def objective(
    teacher: nn.Module,
    statistics: BatchNormStatistics,
    view: Tensor,
    labels: Tensor,
    terms: TermsConfig,
    competitor: Callable[[Tensor], Tensor] | None = None,
) -> Outcome:
    """Return eq. 8 on a view (B, C, H, W) in the teacher's normalisation, with labels (B,); one pass of the teacher.

    The latents of the intra-divergence terms are the teacher's pooled features in front of its classifier.
    ``competitor`` maps the view to the logits (B, K) of the student that adaptive inversion disagrees with.
    """
    outputs = read_intermediates(teacher, view)
    parts = {
        "label": F.cross_entropy(outputs.logits, labels),
        "total_variation": total_variation(view),
        "l2": l2_prior(view),
        "bn": statistics.take(),
    }
    figures: dict[str, Tensor] = {}
    if terms.easiest_positive > 0 or terms.triplet > 0:
        network: Any = teacher
        latents = network.forward_head(outputs.tokens, pre_logits=True)
        found = intra_divergence(latents, labels, margin=terms.margin, normalise=terms.normalise_latents)
        parts |= {"easiest_positive": found.loss_ep, "triplet": found.loss_triplet}
        figures = {
            "distance_easiest_positive": found.easiest_positive,
            "distance_hardest_negative": found.hardest_negative,
        }
    if competitor is not None:
        parts["competition"] = competition_loss(competitor(view), outputs.logits, temperature=terms.temperature)
    loss = torch.stack([getattr(terms, name) * part for name, part in parts.items()]).sum()
    return Outcome(loss, parts | figures, outputs.logits)
