"""The decay of L_feat over training (Bootstrapping ViTs, arXiv 2112.03552, section 3.3)."""

from __future__ import annotations

from typing import Literal


def feature_decay(epoch: int, epochs: int, strategy: Literal["linear", "none"] = "linear") -> float:
    """Return the factor of L_feat in ``epoch``, counted from 0: ``max(0, 1 - epoch / epochs)``, or 1.

    It is constant within an epoch and 1 / epochs in the last one. The paper speaks of several strategies; its tables
    and the released code have these two.
    """
    return 1.0 if strategy == "none" else max(0.0, 1.0 - epoch / epochs)
