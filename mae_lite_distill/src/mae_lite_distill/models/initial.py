"""How linear layers begin in MAE and in MoCo-v3."""

from __future__ import annotations

from torch import nn


def init_linear(module: nn.Module) -> None:
    """Set Xavier-uniform matrices and zero biases in all linear layers. A fused qkv counts as one matrix."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
