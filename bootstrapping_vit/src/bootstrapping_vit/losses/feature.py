"""L_feat: adaptive intermediate supervision of one layer (Bootstrapping ViTs, arXiv 2112.03552, eq. 6)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-5


def feature_loss(
    vit_map: Tensor,
    agent_map: Tensor,
    *,
    adapter: Literal["1d", "2d"] = "1d",
    norm: Literal["layer_norm", "l2"] = "layer_norm",
) -> Tensor:
    """Return the distance of the ViT's tokens to the agent's map, each token normalised over its channels.

    The larger of the two is pooled to the size of the smaller, then every token is normalised, then

        L = mean over images and tokens of || u - v ||^2.

    Eq. 6 does not say over what the norms run, nor which side is adapted; this is the released code. No gradient
    reaches the agent. The result lies in [0, 4] and is 2 for unrelated features.

    Args:
        vit_map: (B, d, H, W), patch tokens of a block on their grid, without the class token.
        agent_map: (B, d, h, w), the layer of the same index.
        adapter: ``1d``: averages over runs of tokens in raster order, the paper's "sequence interpolation"; rows of the
            two maps then face each other, columns do not. ``2d``: averages over rectangles, Table 4's "AP-2D".
        norm: ``layer_norm``: centred over channels and divided by the standard deviation, as released, so that the loss
            is 2 (1 - correlation); ``l2``: divided by the norm alone, eq. 6 to the letter.

    Raises:
        ValueError: other batch or width, or sizes of which one is no multiple of the other.

    """
    if vit_map.ndim != 4 or agent_map.ndim != 4 or vit_map.shape[:2] != agent_map.shape[:2]:
        shapes = f"{tuple(vit_map.shape)} against {tuple(agent_map.shape)} of the agent"
        raise ValueError(f"feature_loss: maps of shape {shapes}; batch and width must agree")
    agent_map = agent_map.detach()
    vit, agent = _match_2d(vit_map, agent_map) if adapter == "2d" else _match_1d(vit_map, agent_map)
    difference = _normalise(vit, norm) - _normalise(agent, norm)
    return difference.square().sum(dim=1).mean()


def _match_1d(vit_map: Tensor, agent_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (B, d, n) of equal length."""
    vit, agent = vit_map.flatten(2), agent_map.flatten(2)
    length, longest = sorted((vit.shape[2], agent.shape[2]))
    if longest % length:
        raise ValueError(f"feature_loss: {vit.shape[2]} tokens of the ViT against {agent.shape[2]} of the agent")
    return _pool_1d(vit, length), _pool_1d(agent, length)


def _pool_1d(x: Tensor, length: int) -> Tensor:
    ratio = x.shape[2] // length
    return x if ratio == 1 else x.reshape(*x.shape[:2], length, ratio).mean(dim=3)


def _match_2d(vit_map: Tensor, agent_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as (B, d, n) on the smaller of the two grids."""
    smaller = min(vit_map, agent_map, key=lambda map_: map_.shape[2] * map_.shape[3])
    size = (smaller.shape[2], smaller.shape[3])
    vit, agent = (F.adaptive_avg_pool2d(map_, size) for map_ in (vit_map, agent_map))
    return vit.flatten(2), agent.flatten(2)


def _normalise(x: Tensor, norm: str) -> Tensor:
    """Give each token of (B, d, n) a squared norm of about 1."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if norm == "l2":
        return F.normalize(x, dim=1)
    # LayerNorm gives a squared norm of d, and the released code then takes the mean over channels.
    x = x - x.mean(dim=1, keepdim=True)
    variance = x.square().mean(dim=1, keepdim=True)
    return x * ((variance + EPS) * x.shape[1]).rsqrt()
