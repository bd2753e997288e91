"""What the localisation loss costs: a training step of Swin-T with and without it, and its sampler against a loop.

python -m benchmarks.drloc [--out FILE]

Both steps are forward, loss and backward at 224 px, and the update of all weights, on the same images, in turn.
The loop draws, gathers and measures pair by pair for one image after another, as one would write it first.
"""

from __future__ import annotations

import statistics

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.record import interleave, ratio, report
from drloc import DRLoc
from drloc.pairs import offsets, pair_tokens, sample_pairs

BATCH = 4
PAIRS = 64


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    report("drloc", {"step": _step(), "sampler": _sampler()})


def _step() -> dict[str, float]:
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=100, drop_path_rate=0.2).train()
    drloc = DRLoc(model)
    plain = torch.optim.AdamW(model.parameters(), fused=True)
    both = torch.optim.AdamW([*model.parameters(), *drloc.parameters()], fused=True)

    def with_loss() -> None:
        out = drloc(model, images)
        _update(F.cross_entropy(out.logits, labels) + 0.5 * out.loss, both)

    def without() -> None:
        _update(F.cross_entropy(model(images), labels), plain)

    first, second = interleave(with_loss, without, rounds=50)
    figures = ratio(first, second)
    fastest = min(first) / min(second)
    return {
        "with_ms": figures["first_ms"],
        "without_ms": figures["second_ms"],
        "ratio": figures["ratio"],
        "ratio_of_fastest": fastest,
    }


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _sampler() -> dict[str, float]:
    grid = torch.randn(128, 768, 7, 7)
    generator = torch.Generator().manual_seed(0)

    def vectorised() -> tuple[Tensor, Tensor]:
        pairs = sample_pairs(len(grid), (7, 7), PAIRS, device=grid.device, generator=generator)
        return pair_tokens(grid, pairs), offsets(pairs)

    def loop() -> tuple[Tensor, Tensor]:
        tokens, distances = [], []
        for image in grid:
            for _ in range(PAIRS):
                i, j, p, h = torch.randint(7, (4,), generator=generator).tolist()
                tokens.append(torch.cat([image[:, i, j], image[:, p, h]]))
                distances.append([abs(i - p), abs(j - h)])
        return torch.stack(tokens).view(len(grid), PAIRS, -1), torch.tensor(distances).view(len(grid), PAIRS, 2)

    assert [out.shape for out in vectorised()] == [out.shape for out in loop()]
    fast, slow = interleave(vectorised, loop, rounds=15)
    times_faster = statistics.median(b / a for a, b in zip(fast, slow, strict=True))
    return {
        "vectorised_ms": statistics.median(fast) * 1e3,
        "loop_ms": statistics.median(slow) * 1e3,
        "times_faster": times_faster,
    }


if __name__ == "__main__":
    main()
