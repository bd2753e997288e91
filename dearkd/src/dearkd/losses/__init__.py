"""The losses of DearKD, one file per term."""

from __future__ import annotations

from dearkd.losses.hidden import hidden_loss
from dearkd.losses.logit import logit_loss
from dearkd.losses.total import total_loss

__all__ = ["hidden_loss", "logit_loss", "total_loss"]
