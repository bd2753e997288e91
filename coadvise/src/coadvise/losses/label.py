"""The label term of Co-advise (arXiv 2106.12378, eq. 1): cross-entropy of the tokens that learn from labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def label_loss(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Return the cross-entropy with the ground truth, mean over the batch and over the tokens given.

    Args:
        logits: (B, K) of each token that learns from labels: the class token, or, without teachers (CiT-SA, whose
            loss was not released), all of them.
        targets: class ids (B,), or distributions (B, K) under Mixup, CutMix or label smoothing.

    """
    return torch.stack([F.cross_entropy(each, targets) for each in logits]).mean()
