"""ViTs and agent CNNs, registered with timm, and what ties a pair together."""

from __future__ import annotations

from bootstrapping_vit.models.agent import AgentCNN
from bootstrapping_vit.models.pair import share_weights, shared_tensors
from bootstrapping_vit.models.vit import build_vit

__all__ = ["AgentCNN", "build_vit", "share_weights", "shared_tensors"]
