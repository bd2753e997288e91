"""L_mutual: both learn from the labels and from each other (Bootstrapping ViTs, arXiv 2112.03552, eq. 8)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class MutualTerm(NamedTuple):
    """The two terms of L_KD for one of the pair, scalars: cross-entropy and distillation."""

    label: Tensor
    distill: Tensor


def mutual_term(logits: Tensor, other_logits: Tensor, targets: Tensor, *, temperature: float) -> MutualTerm:
    """Return both terms of ``L_KD(p, sg(p'), y)``: ``CE(z, y)`` and ``T^2 KL(softmax(z' / T) || softmax(z / T))``.

    L_mutual of eq. 8 is their unweighted sum for the ViT and for the agent. KL is summed over classes, both are means
    over the batch; the other's logits get no gradient.

    Args:
        logits: (B, K), of the one that learns.
        other_logits: (B, K), of its partner.
        targets: (B,) class ids or (B, K) probabilities.
        temperature: T.

    Raises:
        ValueError: the shapes of the logits differ.

    """
    if logits.shape != other_logits.shape:
        raise ValueError(f"mutual_term: logits of shape {tuple(logits.shape)} against {tuple(other_logits.shape)}")
    own = F.log_softmax(logits / temperature, dim=1)
    other = F.log_softmax(other_logits.detach() / temperature, dim=1)
    distill = temperature**2 * F.kl_div(own, other, reduction="batchmean", log_target=True)
    return MutualTerm(F.cross_entropy(logits, targets), distill)
