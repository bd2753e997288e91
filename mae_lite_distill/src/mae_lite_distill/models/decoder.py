"""The light decoder of MAE-Tiny (MAE-Lite, arXiv 2205.14443; released code: one block, 96 wide, three heads)."""

from __future__ import annotations

import torch
from timm.layers import LayerNorm
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mae_lite_distill.models.encoder import Masking
from mae_lite_distill.models.initial import init_linear
from mae_lite_distill.models.positions import sincos_positions


class Decoder(nn.Module):
    """Predict every patch from the encoded ones, with a mask token in each removed position.

    width_in: of the encoder. grid: rows and columns of patches. pixels: values per patch.
    """

    positions: Tensor

    def __init__(
        self, width_in: int, grid: tuple[int, int], pixels: int, *, width: int = 96, depth: int = 1, heads: int = 3
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(width_in, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        # Not saved: the grid and the width say it.
        self.register_buffer("positions", sincos_positions(width, grid, first="column").float()[None], persistent=False)
        self.blocks = nn.Sequential(
            *(Block(width, heads, mlp_ratio=4, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth))
        )
        self.norm = LayerNorm(width)
        self.predict = nn.Linear(width, pixels)
        init_linear(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, masking: Masking) -> Tensor:
        """Map encoded tokens (B, 1 + kept, D), class token first, to predictions (B, N, pixels) in patch order."""
        x = self.embed(tokens)
        missing = masking.shuffle.shape[1] - masking.kept
        x_all = torch.cat([x[:, 1:], self.mask_token.expand(len(x), missing, -1).to(x.dtype)], dim=1)
        x_all = x_all.gather(1, masking.restore[..., None].expand(-1, -1, x.shape[-1]))
        x = torch.cat([x[:, :1], x_all], dim=1) + self.positions
        predictions: Tensor = self.predict(self.norm(self.blocks(x)))[:, 1:]
        return predictions
