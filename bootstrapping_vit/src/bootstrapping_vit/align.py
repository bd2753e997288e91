"""Algorithm 1 of Bootstrapping ViTs: gradients of the shared weights are aligned, then averaged.

With Theta_S shared, Theta_V and Theta_A private, and gradients g^V of L_V and g^A of L_A:

    Theta_V -= lr g^V,   Theta_A -= lr g^A,   Theta_S -= lr / 2 (g^V + Align(g^A | g^V)).

The optimiser sees the combined gradient; it has one pair of moments for a shared tensor and decays it once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from itertools import groupby
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from bootstrapping_vit.models.pair import SharedTensor
from vitutor_core.distributed import sum_over_processes, world
from vitutor_core.train.method import StepOutput

Granularity = Literal["global", "layer", "tensor"]
Gradients = dict[nn.Parameter, Tensor]


class Aligned(NamedTuple):
    """The agent's gradient without what conflicts with the ViT's, and whether anything did, a scalar."""

    gradient: list[Tensor]
    conflict: Tensor


def align(agent: Sequence[Tensor], vit: Sequence[Tensor]) -> Aligned:
    """Project the conflicting part out of the agent's gradient, PCGrad (Yu et al., arXiv 2001.06782) in one direction.

        Align(a | v) = a                          where <a, v> >= 0
                       a - <a, v> / <v, v> v      else

    Both sequences are read as one vector each. The ViT's gradient is never changed; if it is zero, nothing conflicts.

    Raises:
        ValueError: the shapes differ.

    """
    if [a.shape for a in agent] != [v.shape for v in vit]:
        raise ValueError("align: gradients of different shapes")
    inner = torch.stack([(a * v).sum() for a, v in zip(agent, vit, strict=True)]).sum()
    square = torch.stack([v.square().sum() for v in vit]).sum()
    # Without a branch on the values, which would wait for the device; subtracting 0 * v changes nothing.
    share = torch.where(square > 0, inner.clamp(max=0) / square, torch.zeros_like(square))
    return Aligned([a - share * v for a, v in zip(agent, vit, strict=True)], share < 0)


class AlignedUpdate:
    """Computes the gradients of one update by Algorithm 1; made anew for each update.

    ``forward`` must return ``losses["vit_loss"]`` and ``losses["agent_loss"]``, with graphs that share nothing but
    parameters. Over several micro-batches both gradients are summed first and aligned once, so
    accumulation does not change the update; over several processes they are averaged first, and BatchNorm's statistics
    with them. DDP's own averaging is off, since it would meet each shared tensor twice. The part ``conflicts`` of its
    output is the share of vectors where there was something to align, over the micro-batches so far.

    Args:
        vit: the ViT, which owns the shared tensors.
        agent: the agent, which owns the rest of what it uses.
        shared: Theta_S, in the order of the layers.
        granularity: what Align takes as one vector: all of Theta_S (PCGrad's convention), a layer of it, or a tensor.
            The paper names none.
        others: more parameters that are trained by L_V alone.

    """

    def __init__(
        self,
        vit: nn.Module,
        agent: nn.Module,
        shared: Sequence[SharedTensor],
        granularity: Granularity,
        others: Sequence[nn.Parameter] = (),
    ) -> None:
        keys: dict[Granularity, Callable[[tuple[int, SharedTensor]], int]] = {
            "global": lambda _: 0,
            "layer": lambda item: item[1].layer,
            "tensor": lambda item: item[0],
        }
        self._groups = [[tensor for _, tensor in group] for _, group in groupby(enumerate(shared), keys[granularity])]
        private = [parameter for parameter in agent.parameters() if parameter.requires_grad]
        self._parameters = {
            "vit_loss": [*(parameter for parameter in vit.parameters() if parameter.requires_grad), *others],
            "agent_loss": [tensor.parameter for tensor in shared] + private,
        }
        self._statistics = [buffer for buffer in agent.buffers() if buffer.is_floating_point()]
        self._sums: dict[str, list[Tensor]] = {}

    def __call__(
        self,
        forward: Callable[[], StepOutput],
        *,
        scale: float,
        no_sync: Callable[[], AbstractContextManager[Any]],
    ) -> StepOutput:
        """Add a micro-batch, and set each ``.grad`` to what Algorithm 1 gives for those so far."""
        with no_sync():
            output = forward()
            for name, parameters in self._parameters.items():
                found = torch.autograd.grad(output.losses[name] * scale, parameters, materialize_grads=True)
                before = self._sums.get(name)
                self._sums[name] = list(found) if before is None else list(torch._foreach_add(before, list(found)))
        conflicts = self._combine(*self._over_processes())
        return output._replace(parts={**output.parts, "conflicts": conflicts})

    def _over_processes(self) -> tuple[Gradients, Gradients]:
        """Return the gradients of ViT and agent, averaged over the processes by one reduction."""
        sums = self._sums
        processes = world()[1]
        if processes > 1:
            local = [*sums["vit_loss"], *sums["agent_loss"], *self._statistics]
            flat = sum_over_processes(torch.cat([tensor.flatten() for tensor in local])) / processes
            pieces = iter(torch.split(flat, [tensor.numel() for tensor in local]))
            sums = {name: [next(pieces).view_as(own) for own in gradients] for name, gradients in sums.items()}
            for buffer in self._statistics:
                buffer.copy_(next(pieces).view_as(buffer))
        vit, agent = (dict(zip(self._parameters[name], sums[name], strict=True)) for name in ("vit_loss", "agent_loss"))
        return vit, agent

    def _combine(self, vit: Gradients, agent: Gradients) -> Tensor:
        """Set each ``.grad``; return the share of vectors in which something conflicted, a scalar."""
        conflicts = []
        combined = agent | {parameter: gradient.clone() for parameter, gradient in vit.items()}
        for group in self._groups:
            ours = [vit[tensor.parameter][tensor.start :] for tensor in group]
            theirs = [agent[tensor.parameter][tensor.start :] for tensor in group]
            aligned = align(theirs, ours)
            conflicts.append(aligned.conflict)
            for tensor, v, a in zip(group, ours, aligned.gradient, strict=True):
                combined[tensor.parameter][tensor.start :] = (v + a) / 2
        for parameter, gradient in combined.items():
            parameter.grad = gradient
        return torch.stack(conflicts).double().mean()
