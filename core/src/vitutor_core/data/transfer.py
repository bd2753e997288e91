"""Moving host arrays to the device without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """Return ``array`` as a tensor on ``device``; on CUDA the copy is asynchronous, from pinned memory."""
    tensor = torch.as_tensor(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
