"""How far and how widely the heads of a vision transformer look: attention distance and entropy."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_distance(attention: Tensor, grid: tuple[int, int], num_prefix: int, patch_size_px: float = 1.0) -> Tensor:
    """Return the mean distance between a query and the keys it attends to, per head.

    attention: (B, H, N, N), rows are queries and sum to 1; N = num_prefix + h * w, content tokens in row-major order.
    Returns (H,): the mean over batch and content queries i of sum_j A_ij ||p_i - p_j||, times ``patch_size_px``
    (1: in patches), with A restricted to content queries and keys and normalised again over the keys. 0 means that
    every token sees only itself; uniform attention on 14 x 14 gives 7.2808 patches. NaN where a query has no weight
    at all on the content. DearKD (Fig. 4) gives no formula; class and distillation tokens have no place on the grid, so
    they are left out, which equals leaving them out before the softmax (MAE-Lite, eq. 1).

    Raises `ValueError` if the shape does not fit ``grid`` and ``num_prefix``.
    """
    content = _among_patches(attention, grid, num_prefix)
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=content.device), torch.arange(grid[1], device=content.device), indexing="ij"
    )
    positions = torch.stack([rows.flatten(), columns.flatten()], dim=1).to(content.dtype)
    # Differences, not cdist's expansion of the square, which loses digits where the distance is small.
    distances = (positions[:, None] - positions[None]).norm(dim=2)
    return patch_size_px * torch.einsum("bhij,ij->bhi", content, distances).mean(dim=(0, 2))


def attention_entropy(attention: Tensor, grid: tuple[int, int], num_prefix: int, *, epsilon: float = 0.0) -> Tensor:
    """Return the mean entropy of the attention of a query in nats, per head (MAE-Lite, eq. 2).

    attention, grid, num_prefix: as for `attention_distance`. Returns (H,): the mean over batch and content queries of
    -sum_j A_ij ln(A_ij + epsilon), with A restricted to the content and normalised again. 0 means that every token
    sees one, ln(h * w) that it sees all alike. The released tool has an epsilon of 1e-6.
    """
    content = _among_patches(attention, grid, num_prefix)
    entropies = -torch.xlogy(content, content + epsilon).sum(dim=3)
    return entropies.mean(dim=(0, 2))


def _among_patches(attention: Tensor, grid: tuple[int, int], num_prefix: int) -> Tensor:
    """Return attention of content queries to content keys, normalised again: (B, H, h * w, h * w)."""
    height, width = grid
    tokens = num_prefix + height * width
    if attention.ndim != 4 or attention.shape[2:] != (tokens, tokens):
        raise ValueError(
            f"attention has shape {tuple(attention.shape)}, expected (B, H, {tokens}, {tokens}) "
            f"for {num_prefix} prefix tokens and a {height} x {width} grid"
        )
    content = attention[:, :, num_prefix:, num_prefix:]
    if content.dtype in (torch.float16, torch.bfloat16):
        content = content.float()
    return content / content.sum(dim=3, keepdim=True)
