"""The boundary-preserving intra-divergence loss (DearKD, arXiv 2204.12997, section 4, eq. 10-13).

Pushing images of one class apart makes them diverse; the triplet term keeps the classes apart while this happens.
The printed formulas have three slips, which are read here as the prose means them: the easiest positive of eq. 10
would be the anchor itself, at distance 0; the hardest negative has the formula of the hardest positive; and the text
in front of eq. 12 states the margin with the wrong sign, unlike eq. 12.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# An anchor and an equal image have distance 0, where the root has no gradient.
_SMALLEST_SQUARE = 1e-12


class IntraDivergence(NamedTuple):
    """Scalars: ``loss_ep`` is eq. 11, ``loss_triplet`` eq. 12; the distances are means over anchors, for the log."""

    loss_ep: Tensor
    loss_triplet: Tensor
    easiest_positive: Tensor
    hardest_negative: Tensor


def intra_divergence(
    latents: Tensor, labels: Tensor, *, margin: float = 0.3, normalise: bool = True
) -> IntraDivergence:
    """Return both terms of a batch, from Euclidean distances in the teacher's latent space.

    Of anchor a, the positives are the other images of its class and the negatives all images of other classes.

    - ``loss_ep = -mean_a d(a, ep(a))``: the easiest positive ep is the nearest one;
    - ``loss_triplet = mean_a max(0, d(a, hp(a)) - d(a, hn(a)) + margin)``: the hardest positive hp is the farthest
      positive and the hardest negative hn the nearest negative.

    Anchors without a positive are left out, and of the triplet term also those without a negative; a term without
    anchors is 0. Means are over anchors.

    Args:
        latents: (B, D), the teacher's features; the paper does not say which.
        labels: (B,) class ids.
        margin: least distance by which the hardest negative must be farther than the hardest positive; not printed.
        normalise: bring latents to unit length first. Not printed; without it loss_ep has no lower bound and, at the
            paper's weight of 50, swamps all other terms.

    Raises:
        ValueError: the shapes do not fit.

    """
    if latents.ndim != 2 or labels.shape != latents.shape[:1]:
        shapes = f"{tuple(latents.shape)} with labels {tuple(labels.shape)}"
        raise ValueError(f"intra_divergence: latents of shape {shapes}; expected (B, D) and (B,)")
    if normalise:
        latents = F.normalize(latents, dim=1)
    # Differences, not the shorter product form, whose rounding is largest where distances are small.
    distances = (latents[:, None] - latents[None]).square().sum(dim=2).clamp_min(_SMALLEST_SQUARE).sqrt()
    same = labels[:, None] == labels[None]
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    infinity = float("inf")
    nearest_positive = distances.masked_fill(~positive, infinity).amin(dim=1)
    farthest_positive = distances.masked_fill(~positive, -infinity).amax(dim=1)
    nearest_negative = distances.masked_fill(same, infinity).amin(dim=1)
    has_positive, has_negative = positive.any(dim=1), ~same.all(dim=1)
    hinge = F.relu(farthest_positive - nearest_negative + margin)
    easiest = _mean_where(nearest_positive, has_positive)
    return IntraDivergence(
        -easiest,
        _mean_where(hinge, has_positive & has_negative),
        easiest.detach(),
        _mean_where(nearest_negative, has_negative).detach(),
    )


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of ``values`` (B,) over ``mask``, 0 if it is empty; what is masked gets no gradient."""
    return torch.where(mask, values, values.new_zeros(())).sum() / mask.sum().clamp_min(1)
