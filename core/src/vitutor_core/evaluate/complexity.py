"""Size, operations and speed of a model."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitutor_core.models.modes import evaluation_mode


def complexity(model: nn.Module, image_size: int, channels: int = 3) -> dict[str, int]:
    """Count the ``parameters`` of ``model`` and the ``flops`` of one image in evaluation mode.

    One multiply-add counts as two FLOPs (DeiT-Ti at 224 px: 2.507e9). Matrix products, convolutions and attention
    count; element-wise work does not, as is usual. The count runs on the meta device, so it costs neither memory
    nor time and leaves the model as it is.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        shadow(torch.empty(1, channels, image_size, image_size, device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, "flops": counter.get_total_flops()}


def throughput(
    model: nn.Module, image_size: int, *, device: torch.device | str, batch_size: int, seconds: float = 2.0
) -> float:
    """Return the images per second of inference on ``device`` in float32, over at least ``seconds`` after a warm-up.

    The model must be on ``device``, where its input stays; it runs in evaluation mode.
    """
    device = torch.device(device)
    images = torch.zeros(batch_size, 3, image_size, image_size, device=device)
    with evaluation_mode(model), torch.inference_mode():
        _rate(model, images, seconds / 4)
        return _rate(model, images, seconds)


def _rate(model: nn.Module, images: torch.Tensor, seconds: float) -> float:
    """Double the number of batches until they take ``seconds``; the GPU is waited for only at both ends."""
    batches = 1
    while True:
        _synchronise(images.device)
        start = time.monotonic()
        for _ in range(batches):
            model(images)
        _synchronise(images.device)
        elapsed = time.monotonic() - start
        if elapsed >= seconds:
            return batches * len(images) / elapsed
        batches *= 2


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
