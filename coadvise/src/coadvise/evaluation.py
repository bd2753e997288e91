"""What each token of a student is worth, and how near it is to each teacher (Co-advise, Tables 5 and 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from coadvise.losses import divergence
from vitutor_core.data.types import EvalLoader
from vitutor_core.distributed import sum_over_processes


def token_metrics(
    tokens: Callable[[Tensor], Mapping[str, Tensor]],
    teachers: Mapping[str, Callable[[Tensor], Tensor]],
    evaluation: EvalLoader,
    device: torch.device,
) -> dict[str, float]:
    """Compare a student's heads with the labels and with its teachers, over all evaluation images and processes.

    Args:
        tokens: maps images (B, C, H, W) to the logits (B, K) of each head by name.
        teachers: each maps images to logits (B, K), by role.
        evaluation: images and class ids.
        device: where the models are.

    Returns:
        For each head H: ``H_top1`` in percent and, for each teacher T, ``H_kl_T`` = KL(T || H) and ``H_reverse_kl_T`` =
        KL(H || T), means over images in nats at temperature 1. ``mean_top1`` is of the mean of all logits, and
        ``teacher_T_top1`` each teacher's own accuracy.

    """
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=device)) + value.double()

    with torch.no_grad():
        for batch in evaluation:
            images, labels = (tensor.to(device) for tensor in batch)
            found = tokens(images)
            theirs = {role: teacher(images) for role, teacher in teachers.items()}
            heads = {**found, "mean": torch.stack(list(found.values())).mean(0)}
            heads |= {f"teacher_{role}": logits for role, logits in theirs.items()}
            for name, logits in heads.items():
                add(f"{name}_top1", 100 * (logits.argmax(1) == labels).sum())
            for name, logits in found.items():
                for role, teacher in theirs.items():
                    add(f"{name}_kl_{role}", len(images) * divergence(logits, teacher))
                    add(f"{name}_reverse_kl_{role}", len(images) * divergence(teacher, logits))
            add("images", torch.tensor(len(images), device=device))
    totals = sum_over_processes(torch.stack(list(sums.values())))
    *values, images_seen = totals.tolist()
    # The last sum, the number of images, has no mean.
    return {name: value / images_seen for name, value in zip(sums, values, strict=False)}
