"""Stop at the first NaN or infinity, before it reaches a weight."""

from __future__ import annotations

import torch
from torch import Tensor

from vitutor_core.errors import NonFiniteError


class FiniteGuard:
    """Checks the loss before backward and the gradient norm before the update.

    On a CPU the verdict is read at once. On an accelerator reading it would stall the queue, so a flag stays on the
    device, makes the fused optimiser skip every update from the bad one on (as AMP's gradient scaler does), and is
    read by `raise_if_bad` once in a log interval and before each save.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._bad = torch.zeros((), device=device)
        self._what = "loss"
        fused = all(group.get("fused") for group in optimizer.param_groups)
        self.deferred = device.type == "cuda" and fused
        if self.deferred:
            optimizer.found_inf = self._bad  # type: ignore[attr-defined]  # read by torch's fused kernels
            optimizer.grad_scale = None  # type: ignore[attr-defined]  # likewise

    def check(self, value: Tensor, what: str) -> None:
        """Note whether ``value``, a scalar, is finite; raises `NonFiniteError` now or at the next reading."""
        bad = torch.logical_not(torch.isfinite(value.detach()))
        self._bad.copy_(torch.maximum(self._bad, bad.to(self._bad.dtype)))
        if not self.deferred:
            self._what = what
            self.raise_if_bad()

    def raise_if_bad(self) -> None:
        """Raise `NonFiniteError` if any value so far was not finite."""
        if self._bad.item():
            what = "the loss or a gradient" if self.deferred else f"the {self._what}"
            raise NonFiniteError(
                f"{what} became NaN or infinite; the last checkpoint is intact: lower optim.lr, set optim.clip_norm, "
                "or use train.precision=fp32"
            )
