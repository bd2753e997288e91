"""What both pre-trainings share: a plain timm ViT is trained whose head is not, and judged by its features."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vitutor_core.data.types import EvalLoader
from vitutor_core.evaluate.neighbours import neighbour_accuracy
from vitutor_core.train.method import Method


class Pretraining(Method):
    """Base of the pre-trainings. The student is published with an untrained head, so it is no classifier yet."""

    classifies = False

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student: Any = student
        self.student.head.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Return nothing: class and mask token decay in pre-training, and positions are fixed."""
        return set()

    @torch.no_grad()
    def final_metrics(self, evaluation: EvalLoader) -> dict[str, float]:
        """Return ``knn_top1``, and the number of images."""
        self.student.eval()
        device = self.student.pos_embed.device
        found = [(self._features(images.to(device)), labels.to(device)) for images, labels in evaluation]
        features, labels = (torch.cat(column) for column in zip(*found, strict=True))
        return neighbour_accuracy(features, labels)

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.student.forward_head(self.student.forward_features(images), pre_logits=True)
        return features

    @staticmethod
    def sum_over_processes(totals: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
