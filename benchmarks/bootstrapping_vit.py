"""What the agent costs: the shared convolution against its dense form, a joint step against two steps alone.

python -m benchmarks.bootstrapping_vit [--out FILE]

The dense form is that of eq. 4 and 5 and of the released code: one matrix per head from W^V and W^O, and Phi as an
n x (H n) matrix of zeros and ones. Ours projects to values, shifts them, projects back; the results are compared. Steps
are forward, backward and AdamW of ViT-S and its agent on CIFAR at 32 px, joint and each with cross-entropy alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.record import report
from bootstrapping_vit.cli import PAPER
from bootstrapping_vit.method import BootstrappingViT
from bootstrapping_vit.models.conv import head_window, shared_conv
from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.train.method import Clock

INFO = DataInfo("cifar100", tuple(map(str, range(100))), 32, 3, (0.5,) * 3, (0.5,) * 3, 50_000, 10_000, "benchmark")
START = Clock(0, 781, 781 * 240)
BATCH = 16


def dense_phi(num_heads: int, side: int) -> Tensor:
    """Return Phi of all heads, (n, H n), for a square map."""
    window, n = head_window(num_heads), side * side
    phi = torch.zeros(n, num_heads, n)
    rows, columns = torch.arange(n) // side, torch.arange(n) % side
    for head in range(num_heads):
        down, right = head // window.side - window.top, head % window.side - window.left
        row, column = rows + down, columns + right
        inside = (row >= 0) & (row < side) & (column >= 0) & (column < side)
        phi[inside.nonzero()[:, 0], head, (row * side + column)[inside]] = 1
    return phi.reshape(n, num_heads * n)


def dense_conv(x: Tensor, value: Tensor, out: Tensor, bias: Tensor, phi: Tensor, num_heads: int) -> Tensor:
    """CONV of eq. 5 with dense Phi, (B, d, h, w) to the same."""
    batch, dim, height, width = x.shape
    taps = torch.stack([o @ v for o, v in zip(out.chunk(num_heads, 1), value.chunk(num_heads, 0), strict=True)])
    projected = torch.einsum("bin,hoi->bhno", x.flatten(2), taps).reshape(batch, -1, dim)
    return (phi @ projected + bias).transpose(1, 2).reshape(batch, dim, height, width)


def convolution(dim: int, num_heads: int, side: int) -> dict[str, float]:
    """Time forward and backward of both forms in one layer."""
    leaves = [torch.randn(dim, dim) / dim**0.5 for _ in range(2)]
    x, weights = torch.randn(BATCH, dim, side, side), [leaf.requires_grad_() for leaf in (*leaves, torch.zeros(dim))]
    x.requires_grad_()
    phi = dense_phi(num_heads, side)

    def ours() -> Tensor:
        return shared_conv(x, *weights, num_heads)

    def dense() -> Tensor:
        return dense_conv(x, *weights, phi, num_heads)

    torch.testing.assert_close(ours(), dense(), rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(x)

    def timed(form: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(form(), (x, *weights), direction)

    figures = ratio(*interleave(timed(ours), timed(dense), rounds=15))
    return {"ours_ms": figures["first_ms"], "dense_ms": figures["second_ms"], "speedup": 1 / figures["ratio"]}


def trainer(*rows: str) -> Callable[[], None]:
    """Return a function that makes one step of each row, one after the other."""
    batch = Batch(torch.randn(BATCH, 3, 32, 32), torch.randint(100, (BATCH,)), torch.arange(BATCH))
    methods = [BootstrappingViT.build(PAPER.resolve("cifar100", None, row, ()), INFO).train() for row in rows]
    optimizers = [torch.optim.AdamW(method.parameters(), lr=1e-3, fused=True) for method in methods]

    def step() -> None:
        for method, optimizer in zip(methods, optimizers, strict=True):
            optimizer.zero_grad()
            method(batch, START).loss.backward()
            nn.utils.get_total_norm([p.grad for p in method.parameters() if p.grad is not None])
            optimizer.step()

    return step


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = ratio(*interleave(trainer("joint"), trainer("vit", "agent"), rounds=12, warm_up=1))
    report(
        "agent of Bootstrapping ViTs",
        {
            "shared_convolution": {
                "S, 14x14": convolution(288, 9, 14),
                "B, 14x14": convolution(384, 6, 14),
                "S, 7x7": convolution(288, 9, 7),
            },
            "joint_step": {
                "joint_ms": figures["first_ms"],
                "vit_and_agent_ms": figures["second_ms"],
                "ratio": figures["ratio"],
            },
        },
    )


if __name__ == "__main__":
    main()
