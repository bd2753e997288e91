"""The weight of the loss over the epochs."""

from __future__ import annotations

from typing import Literal


def loss_weight(
    weight: float,
    epoch: int,
    *,
    schedule: Literal["constant", "ramp"] = "constant",
    warmup_epochs: int = 20,
    total_epochs: int = 300,
) -> float:
    """Return lambda in ``epoch``, counted from 0.

    The paper (section 3) has a constant. The released code, without a word in the paper, goes up linearly from 0 over
    ``warmup_epochs`` and then down linearly, to 0 at ``total_epochs``, which is the length of its learning-rate
    schedule and not of the run.
    """
    if schedule == "constant":
        return weight
    if epoch <= warmup_epochs:
        return weight * epoch / warmup_epochs
    return weight * (1 - (epoch - warmup_epochs) / (total_epochs - warmup_epochs))
