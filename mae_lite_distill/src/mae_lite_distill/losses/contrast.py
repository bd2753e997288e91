"""The contrastive loss of MoCo-v3 (Chen et al., ICCV 2021, arXiv 2104.02057, eq. 1 and algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(queries: Tensor, keys: Tensor, *, temperature: float, first: int = 0) -> Tensor:
    """Return InfoNCE of queries against keys, times 2 * temperature, as released; mean over the queries.

    Args:
        queries: (B, C), predictions of one view, of any length.
        keys: (K, C), momentum features of the other view, of any length, of all processes.
        temperature: of the softmax over cosines.
        first: query i belongs to key ``first + i``: the position of this process's images among all.

    Raises:
        ValueError: other features, or too few keys.

    """
    if queries.ndim != 2 or keys.shape[1:] != queries.shape[1:] or first + len(queries) > len(keys):
        raise ValueError(f"contrastive_loss: queries {tuple(queries.shape)} from {first} of keys {tuple(keys.shape)}")
    cosines = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    labels = torch.arange(first, first + len(queries), device=queries.device)
    return F.cross_entropy(cosines / temperature, labels) * (2 * temperature)
