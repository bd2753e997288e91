"""The gate in front of every ratio of two ways that claim to compute the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vitutor_core.errors import VitutorError


def check_losses(
    who: str, found: Sequence[float], expected: Sequence[float], device: torch.device, *, rtol: float | None = None
) -> str:
    """Return in which sense losses are equal: bit for bit, or within ``rtol``, on a GPU 1e-2; raises `VitutorError`."""
    if rtol is None and device.type == "cuda":
        rtol = 1e-2  # bf16, and kernels that add in any order
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not math.isclose(one, other, rel_tol=rtol or 0.0):
            raise VitutorError(f"bench: {who}: loss {number} is {one!r} in one way and {other!r} in the other")
    return f"{len(expected)} losses, " + ("bit for bit" if rtol is None else f"within {rtol:g}")
