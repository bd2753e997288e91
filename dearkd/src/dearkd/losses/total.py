"""The objective of stage I (DearKD, arXiv 2204.12997, eq. 6)."""

from __future__ import annotations

from torch import Tensor


def total_loss(
    label: Tensor, logit: Tensor | None, hidden: Tensor | None, *, alpha_loss: float, beta_loss: float
) -> Tensor:
    """Return ``alpha_loss * label + (1 - alpha_loss) * logit + beta_loss * hidden``, DearKD eq. 6.

    The paper calls the weights alpha and beta and gives them no values. Alpha weights the label term here, but the
    teacher's term in DeiT's released hard distillation. In ablations a term may be None: without the logit term there
    is nothing to share the weight with, and the label term counts in full.

    Args:
        label: scalar, cross-entropy of the class token with the labels.
        logit: scalar, `logit_loss`.
        hidden: scalar, `hidden_loss`.
        alpha_loss: weight in [0, 1].
        beta_loss: weight, at least 0.

    """
    loss = label if logit is None else alpha_loss * label + (1 - alpha_loss) * logit
    return loss if hidden is None else loss + beta_loss * hidden
