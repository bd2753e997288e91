"""Shared mode: an agent whose CONV and MLP are made of the ViT's own tensors (Bootstrapping ViTs, section 3.2)."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from bootstrapping_vit.models.agent import AgentCNN
from bootstrapping_vit.models.conv import shared_conv


class SharedConv(nn.Module):
    """CONV with W^V, W^O and b^O of an attention layer; W^Q, W^K and the three biases of the projections are not used.

    It refers to the attention without owning it: the tensors belong to the ViT alone, once in optimiser and checkpoint.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self._of = (attention,)  # in a tuple, or it would be registered as a submodule

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, d, h, w) to the same shape."""
        (attention,) = self._of
        value = attention.qkv.weight[-attention.qkv.in_features :]
        return shared_conv(x, value, attention.proj.weight, attention.proj.bias, attention.num_heads)


class SharedMlp(nn.Module):
    """The ViT's FFN as two 1x1 convolutions, with its dropout of the hidden layer; it owns nothing either."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self._of = (mlp,)
        self.drop = nn.Dropout(mlp.drop1.p)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, d, h, w) to the same shape."""
        (mlp,) = self._of
        hidden = F.conv2d(x, mlp.fc1.weight[:, :, None, None], mlp.fc1.bias)
        return F.conv2d(self.drop(F.gelu(hidden)), mlp.fc2.weight[:, :, None, None], mlp.fc2.bias)


class SharedTensor(NamedTuple):
    """A tensor of Theta_S: the rows from ``start`` on of a parameter of layer ``layer``."""

    layer: int
    parameter: nn.Parameter
    start: int


def share_weights(agent: AgentCNN, vit: Any) -> None:
    """Replace CONV and MLP of every layer of ``agent`` by the ViT's tensors, with the ViT's dropout in both branches.

    Raises:
        ValueError: the two differ in depth, width or heads.

    """
    sizes = [(len(model.blocks), model.embed_dim) for model in (agent, vit)]
    heads = [agent.num_heads, *{block.attn.num_heads for block in vit.blocks}]
    if sizes[0] != sizes[1] or len(set(heads)) != 1:
        raise ValueError(f"agent and ViT differ in (depth, width) {sizes} or heads {heads}")
    for ours, theirs in zip(agent.blocks, vit.blocks, strict=True):
        ours.conv = SharedConv(theirs.attn)
        ours.mlp = SharedMlp(theirs.mlp)
        ours.drop = nn.Dropout(theirs.mlp.drop2.p)


def shared_tensors(vit: Any) -> list[SharedTensor]:
    """List Theta_S: W^V (the last third of the fused projection), W^O, b^O and both matrices and biases of the FFN."""
    found = []
    for layer, block in enumerate(vit.blocks):
        qkv, out, first, second = block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2
        found.append(SharedTensor(layer, qkv.weight, 2 * qkv.in_features))
        whole = (out.weight, out.bias, first.weight, first.bias, second.weight, second.bias)
        found.extend(SharedTensor(layer, parameter, 0) for parameter in whole)
    return found
