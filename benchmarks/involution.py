"""The involution of core against the portable form that unfolds the map: time and memory, on one CPU thread or a GPU.

python -m benchmarks.involution [--out FILE]

One K=7 map of RedNet's first stage, 64 channels at 56x56, batch 8: forward and backward in turn with both, the bytes
that autograd keeps between them, and the process's peak in each; then RedNet-26's forward at 224 px.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import report
from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.models import involution as core
from vitutor_core.models.involution import Involution, involution

Aggregate = Callable[[Tensor, Tensor, int], Tensor]
BATCH, CHANNELS, SIDE, SIZE = 8, 64, 56, 7


def unfolded(x: Tensor, kernels: Tensor, stride: int = 1) -> Tensor:
    """Multiply each window with its kernel after ``F.unfold``, which copies the map once per tap."""
    batch, groups, taps, height, width = kernels.shape
    size = round(taps**0.5)
    windows = F.unfold(x, size, padding=size // 2, stride=stride).view(batch, groups, -1, taps, height, width)
    return (windows * kernels[:, :, None]).sum(3).flatten(1, 2)


def kept_bytes(function: Aggregate, x: Tensor, kernels: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(x, kernels, 1)
    assert result.requires_grad
    return sum(storages.values())


def peak_bytes(step: Callable[[], Any]) -> int | None:
    """Return the peak of a step above what was allocated before it, on a GPU."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def compare(first: Callable[[], Any], second: Callable[[], Any], *, rounds: int) -> dict[str, float]:
    """Time ours and the unfolded form in turn; ``speedup`` is the median of the pairwise ratios."""

    def waiting(function: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return run

    times = interleave(waiting(first), waiting(second), rounds=rounds)
    figures = ratio(times[1], times[0])
    return {"ours_ms": figures["second_ms"], "unfolded_ms": figures["first_ms"], "speedup": figures["ratio"]}


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE, device=device, requires_grad=True)
    kernels = torch.randn(BATCH, CHANNELS // 16, SIZE**2, SIDE, SIDE, device=device, requires_grad=True)

    def step(function: Aggregate) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(function(x, kernels, 1).sum(), (x, kernels))

    def forward(function: Aggregate) -> Callable[[], Any]:
        return lambda: function(x.detach(), kernels.detach(), 1)

    torch.testing.assert_close(involution(x, kernels), unfolded(x, kernels), rtol=1e-4, atol=1e-4)
    ours, theirs = kept_bytes(involution, x, kernels), kept_bytes(unfolded, x, kernels)
    figures: dict[str, Any] = {
        "forward": compare(forward(involution), forward(unfolded), rounds=15),
        "forward and backward": compare(step(involution), step(unfolded), rounds=15),
        "kept for the backward pass": {
            "ours_mib": ours / 2**20,
            "unfolded_mib": theirs / 2**20,
            "share": ours / theirs,
        },
        "peak_bytes": {"ours": peak_bytes(step(involution)), "unfolded": peak_bytes(step(unfolded))},
        "RedNet-26 forward, 4 images of 224 px": _network(device),
    }
    report("involution", figures)


def _network(device: torch.device) -> dict[str, float]:
    images = torch.randn(4, 3, 224, 224, device=device)
    model: nn.Module = timm.create_model("rednet26").eval().to(device)

    def run(function: Aggregate) -> Callable[[], Any]:
        def forward() -> None:
            core.involution = function
            with torch.inference_mode():
                model(images)

        return forward

    assert any(isinstance(module, Involution) for module in model.modules())
    figures = compare(run(involution), run(unfolded), rounds=5)
    core.involution = involution
    return figures


if __name__ == "__main__":
    main()
