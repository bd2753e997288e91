"""What the localisation loss costs: a training step of Swin-T with and without it, and its sampler against a loop.

python -m benchmarks.drloc [--out FILE]

Both steps are forward, loss and backward at 224 px, and the update of all weights, on the same images, in turn.
The loop goes image by image, as one would write it first. `sampler` is drawing pairs and their targets; `with_tokens`
also fetches their tokens, which is bound by memory at Swin-T's width (50 MB) and by overhead at a narrow model's.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.record import report
from drloc import DRLoc
from drloc.pairs import offsets, pair_tokens, sample_pairs
from vitutor_core.bench.timing import interleave, ratio

BATCH = 4
PAIRS = 64


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures = {
        "step_of_swin_t": _step(),
        "sampler_7x7": _sampler(768, 7, tokens=False),
        "sampler_7x7_with_tokens_of_768": _sampler(768, 7, tokens=True),
        "sampler_4x4_with_tokens_of_48": _sampler(48, 4, tokens=True),
    }
    report("drloc", figures)


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

    first, second = interleave(with_loss, without, rounds=30)
    figures = ratio(first, second)
    fastest = min(first) / min(second)  # the least disturbed by other work on the machine
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


def _sampler(dim: int, side: int, *, tokens: bool) -> dict[str, float]:
    grid = torch.randn(128, dim, side, side)
    generator = torch.Generator().manual_seed(0)

    def vectorised() -> tuple[Tensor, Tensor | None]:
        pairs = sample_pairs(len(grid), (side, side), PAIRS, device=grid.device, generator=generator)
        return offsets(pairs), pair_tokens(grid, pairs) if tokens else None

    def loop() -> tuple[Tensor, Tensor | None]:
        targets, found = [], []
        for image in grid:
            rows, columns = (torch.randint(side, (PAIRS, 2), generator=generator) for _ in range(2))
            targets.append(torch.stack([(rows[:, 0] - rows[:, 1]).abs(), (columns[:, 0] - columns[:, 1]).abs()], -1))
            if tokens:
                found.append(torch.cat([image[:, rows[:, end], columns[:, end]].T for end in (0, 1)], dim=1))
        return torch.stack(targets), torch.stack(found) if tokens else None

    for ours, theirs in zip(vectorised(), loop(), strict=True):
        assert (ours is None and theirs is None) or ours.shape == theirs.shape
    fast, slow = interleave(vectorised, loop, rounds=30)
    figures = ratio(slow, fast)
    return {"loop_ms": figures["first_ms"], "vectorised_ms": figures["second_ms"], "times_faster": figures["ratio"]}


if __name__ == "__main__":
    main()
