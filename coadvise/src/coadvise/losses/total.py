"""The whole objective of Co-advise (arXiv 2106.12378, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def total_loss(
    label: Tensor, divergences: Mapping[str, Tensor], *, label_weight: float, weights: Mapping[str, float]
) -> Tensor:
    """Return lambda_0 * label + sum over teachers i of lambda_i * divergence_i, all scalars, Co-advise eq. 1.

    Args:
        label: cross-entropy with the labels.
        divergences: tau_i^2 * KL_i by the teacher's role.
        label_weight: lambda_0; the paper sets every weight to 1.
        weights: lambda_i by role; 1 for a role that is not named.

    """
    loss = label_weight * label
    for role, term in divergences.items():
        loss = loss + weights.get(role, 1.0) * term
    return loss
