"""L_feat: adaptive intermediate supervision of one layer (Bootstrapping ViTs, arXiv 2112.03552, eq. 6)."""

from __future__ import annotations

from typing import Literal

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
        ValueError: other batch or width, or sizes of which one is not a multiple of the other.

    """
    if vit_map.ndim != 4 or agent_map.ndim != 4 or vit_map.shape[:2] != agent_map.shape[:2]:
        shapes = f"{tuple(vit_map.shape)} against {tuple(agent_map.shape)} of the agent"
        raise ValueError(f"feature_loss: maps of shape {shapes}; batch and width must agree")
    agent_map = agent_map.detach()
    vit, agent = _match_2d(vit_map, agent_map) if adapter == "2d" else _match_1d(vit_map, agent_map)
    if norm == "l2":
        return (F.normalize(vit, dim=2) - F.normalize(agent, dim=2)).square().sum(dim=2).mean()
    # LayerNorm gives squared norms of d instead of 1, and the mean runs over d channels. Float32 under autocast.
    width = vit.shape[2:]
    return F.mse_loss(F.layer_norm(vit, width, eps=EPS), F.layer_norm(agent, width, eps=EPS))


def _match_1d(vit_map: Tensor, agent_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as tokens (B, n, d) of equal number."""
    vit, agent = (map_.flatten(2).transpose(1, 2) for map_ in (vit_map, agent_map))
    length, longest = sorted((vit.shape[1], agent.shape[1]))
    if longest % length:
        raise ValueError(f"feature_loss: {vit.shape[1]} tokens of the ViT against {agent.shape[1]} of the agent")
    return _pool_1d(vit, length), _pool_1d(agent, length)


def _pool_1d(tokens: Tensor, length: int) -> Tensor:
    batch, count, width = tokens.shape
    return tokens if count == length else tokens.reshape(batch, length, count // length, width).mean(dim=2)


def _match_2d(vit_map: Tensor, agent_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return both as tokens (B, n, d) on the smaller of the two grids."""
    smaller = min(vit_map, agent_map, key=lambda map_: map_.shape[2] * map_.shape[3])
    size = (smaller.shape[2], smaller.shape[3])
    vit, agent = (F.adaptive_avg_pool2d(map_, size).flatten(2).transpose(1, 2) for map_ in (vit_map, agent_map))
    return vit, agent
