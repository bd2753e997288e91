"""How well the features of an encoder without a classifier group the classes: leave-one-out nearest neighbours."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitutor_core.distributed import gather_rows
from vitutor_core.errors import DataError


def neighbour_accuracy(features: Tensor, labels: Tensor, *, neighbours: int = 20) -> dict[str, float]:
    """Return ``knn_top1`` in percent, and ``images``: each image is classified by its most similar other images.

    The ``neighbours`` nearest by cosine vote with equal weight; of classes with as many votes, the one with the
    smallest number wins. All images of all processes are each other's neighbours.

    Args:
        features: (M, D), of this process's evaluation images.
        labels: (M,) class ids.
        neighbours: number of voters; fewer where there are fewer other images.

    Raises:
        DataError: there are fewer than two images.

    """
    features, labels = F.normalize(gather_rows(features.float()), dim=1), gather_rows(labels)
    count = len(features)
    if count < 2:
        raise DataError("evaluation: nearest neighbours need at least two images; check data.source")
    classes, right = int(labels.max()) + 1, 0
    for start in range(0, count, 1024):
        cosines = features[start : start + 1024] @ features.T
        own = torch.arange(start, start + len(cosines), device=features.device)
        cosines[torch.arange(len(cosines), device=features.device), own] = -torch.inf
        nearest = cosines.topk(min(neighbours, count - 1), dim=1).indices
        votes = F.one_hot(labels[nearest], classes).sum(dim=1)
        right += int((votes.argmax(dim=1) == labels[own]).sum())
    return {"knn_top1": 100 * right / count, "images": float(count)}
