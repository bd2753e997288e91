"""The objectives of the two learners (Bootstrapping ViTs, arXiv 2112.03552, eq. 9)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bootstrapping_vit.losses.mutual import MutualTerm


def vit_loss(
    mutual: MutualTerm, features: Sequence[Tensor], *, w_mutual: float, w_feat: float, decay: float, distill: bool
) -> Tensor:
    """Return ``w_mutual * (CE + KD) + w_feat * decay * sum of the feature losses``.

    Eq. 9 writes alpha for the weight of L_feat and beta for that of L_mutual, with alpha = 1 and beta = 10; the caption
    of Table 4 and the released code have them the other way round, and so have the defaults here: w_mutual = 1,
    w_feat = 10.

    Args:
        mutual: the ViT's terms of L_mutual.
        features: `feature_loss` of each supervised layer; may be empty.
        w_mutual: weight of L_mutual.
        w_feat: weight of L_feat.
        decay: `feature_decay`.
        distill: False leaves KD out (Table 4's rows "Feat").

    """
    loss = agent_loss(mutual, w_mutual=w_mutual, distill=distill)
    for feature in features:
        loss = loss + w_feat * decay * feature
    return loss


def agent_loss(mutual: MutualTerm, *, w_mutual: float, distill: bool) -> Tensor:
    """Return ``w_mutual * (CE + KD)``: no feature loss reaches the agent."""
    return w_mutual * (mutual.label + mutual.distill if distill else mutual.label)
