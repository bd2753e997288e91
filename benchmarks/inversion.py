"""An iteration of the inversion with a frozen teacher against one that leaves the weight gradients on.

python -m benchmarks.inversion [--out FILE]

The released code of DeepInversion calls ``backward()`` on a network whose parameters require gradients, so every weight
gradient is computed and thrown away. Here the teacher is frozen and the gradient is asked for the images alone. Both
sides have the same objective; a second ratio is for the batch statistics, whose gradient is one pass over each map
here and several through torch's ``var_mean``.
"""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from benchmarks.record import report
from dearkd.generation.config import TermsConfig
from dearkd.generation.losses import bn_statistics
from dearkd.generation.objective import BatchNormStatistics, objective
from vitutor_core.bench.timing import interleave, ratio
from vitutor_core.models import cnn as _cnn  # noqa: F401  # registers the CNNs with timm

TERMS = TermsConfig(bn=10.0, easiest_positive=5.0, triplet=0.5)
NETWORKS = {"resnet8_tiny": (100, 16, 40), "resnet18_cifar": (12, 32, 12)}
"""Batch, side and rounds of each teacher."""


def main() -> None:
    """Measure and report."""
    torch.set_num_threads(1)
    figures = {name: measure(name, *sizes) for name, sizes in NETWORKS.items()}
    report("inversion iteration", figures)


def measure(name: str, batch: int, side: int, rounds: int) -> dict[str, float]:
    """Time both pairs on a network of the given name."""
    frozen = timm.create_model(name, num_classes=10).eval().requires_grad_(False)
    trainable = timm.create_model(name, num_classes=10).eval()
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(batch) % 4

    def loss_of(teacher: nn.Module) -> Tensor:
        with BatchNormStatistics(teacher, first=1.0) as statistics:
            return objective(teacher, statistics, images, labels, TERMS).loss

    def ours() -> None:
        torch.autograd.grad(loss_of(frozen), images)

    def with_weight_gradients() -> None:
        trainable.zero_grad()
        images.grad = None
        loss_of(trainable).backward()

    def with_var_mean() -> None:
        fused, bn_statistics.channel_statistics = bn_statistics.channel_statistics, _var_mean
        ours()
        bn_statistics.channel_statistics = fused

    weights = ratio(*interleave(with_weight_gradients, ours, rounds=rounds))
    statistics = ratio(*interleave(with_var_mean, ours, rounds=rounds))
    return {
        "ours_ms": weights["second_ms"],
        "with_weight_gradients_ms": weights["first_ms"],
        "speed_up_frozen": weights["ratio"],
        "with_var_mean_ms": statistics["first_ms"],
        "speed_up_statistics": statistics["ratio"],
    }


def _var_mean(features: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(features, dim=(0, 2, 3), correction=0)
    return mean, variance


if __name__ == "__main__":
    main()
