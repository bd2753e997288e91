"""Sharpness-aware minimisation as an update rule (Foret et al., "Sharpness-Aware Minimization", arXiv 2010.01412)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vitutor_core.train.method import StepOutput

_EPS = 1e-12


class SharpnessAware:
    """Takes the gradient at the worst point nearby, ``w + rho g / ||g||`` with g the gradient at w.

    Two passes forward and backward per micro-batch; the optimiser then steps from w. The norm is over all
    ``parameters``. The passes draw different dropout masks. Each micro-batch of each process is perturbed along
    its own gradient, as is usual ("m-sharpness"), and only the second gradient is averaged over processes.
    BatchNorm sees both passes.

    The log gets the losses at w.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, rho: float) -> None:
        self._parameters: list[Tensor] = [parameter for parameter in parameters if parameter.requires_grad]
        self._rho = rho

    def __call__(
        self,
        forward: Callable[[], StepOutput],
        *,
        scale: float,
        no_sync: Callable[[], AbstractContextManager[Any]],
    ) -> StepOutput:
        """Add ``scale`` times the gradient at the perturbed weights to each ``.grad``; weights are as before."""
        with no_sync():
            output = forward()
            gradients = torch.autograd.grad(output.loss, self._parameters, materialize_grads=True)
        before = [parameter.detach().clone() for parameter in self._parameters]
        self._perturb(list(gradients))
        try:
            (forward().loss * scale).backward()  # type: ignore[no-untyped-call]
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._parameters, before)
        return output

    @torch.no_grad()
    def _perturb(self, gradients: list[Tensor]) -> None:
        factor = self._rho / (nn.utils.get_total_norm(gradients) + _EPS)
        torch._foreach_add_(self._parameters, list(torch._foreach_mul(gradients, factor)))
