"""f: from two tokens to their relative position (DRLoc, arXiv 2106.03746, section 3, Figure 1b).

The paper has "two hidden layers" (its draft one), the released code two of width 512. No norm, no dropout.
"""

from __future__ import annotations

from torch import Tensor, nn


class OffsetHead(nn.Module):
    """Linear, ReLU, linear, ReLU, linear: 1024 d + 264,194 parameters at the default width."""

    def __init__(self, dim: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2)
        )

    def forward(self, pairs: Tensor) -> Tensor:
        """Map concatenated tokens (..., 2d) to offsets (..., 2): rows, then columns."""
        return self.mlp(pairs)  # type: ignore[no-any-return]


class OffsetClassHead(nn.Module):
    """As `OffsetHead`, then a linear classifier per axis; as released, with nothing between the last two layers."""

    def __init__(self, dim: int, classes: tuple[int, int], *, hidden: int = 512) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden)
        )
        self.rows = nn.Linear(hidden, classes[0])
        self.columns = nn.Linear(hidden, classes[1])

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Map concatenated tokens (..., 2d) to logits (..., C) of the row offset and (..., C') of the column offset."""
        hidden = self.trunk(pairs)
        return self.rows(hidden), self.columns(hidden)


def init_head(head: nn.Module) -> None:
    """Draw weights from a truncated normal of standard deviation 0.02 and set biases to 0, as in Swin and T2T-ViT."""
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
