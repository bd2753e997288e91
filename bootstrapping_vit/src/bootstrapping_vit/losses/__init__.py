"""The losses of Bootstrapping ViTs, one file per term."""

from __future__ import annotations

from bootstrapping_vit.losses.decay import feature_decay
from bootstrapping_vit.losses.feature import feature_loss
from bootstrapping_vit.losses.mutual import MutualTerm, mutual_term
from bootstrapping_vit.losses.total import agent_loss, vit_loss

__all__ = ["MutualTerm", "agent_loss", "feature_decay", "feature_loss", "mutual_term", "vit_loss"]
