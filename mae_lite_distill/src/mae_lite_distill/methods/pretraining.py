"""What the pre-trainings share: a timm model is trained whose head is not, and judged by its features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mae_lite_distill.models.encoder import check_encoder
from vitutor_core.data.types import DataInfo, EvalLoader
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.neighbours import neighbour_accuracy
from vitutor_core.models.modes import evaluation_mode
from vitutor_core.models.weights import create_student
from vitutor_core.schema import ModelConfig
from vitutor_core.train.method import Method, Report, Traits


class Pretraining(Method):
    """Base of the pre-trainings. The student is published with an untrained head, so it is not a classifier yet."""

    traits = Traits(classifies=False, measures=True)

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        model: Any = student
        heads = model.get_classifier()
        # Models with a token for a teacher's answers have two.
        for head in heads if isinstance(heads, tuple) else (heads,):
            head.requires_grad_(False)
        self.student: Any = student

    def no_weight_decay(self) -> set[str]:
        """Return nothing: class and mask token decay in pre-training, and positions, where they are trained."""
        return set()

    @torch.no_grad()
    def report(self, probe: Tensor | None = None, evaluation: EvalLoader | None = None) -> Report:
        """Return ``knn_top1`` over the evaluation images, and their number."""
        if evaluation is None:
            return Report()
        device = next(self.student.parameters()).device
        with evaluation_mode(self.student):
            found = [(self._features(images.to(device)), labels.to(device)) for images, labels in evaluation]
        features, labels = (torch.cat(column) for column in zip(*found, strict=True))
        return Report(neighbour_accuracy(features, labels))

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.student.forward_head(self.student.forward_features(images), pre_logits=True)
        return features


def create_encoder(config: ModelConfig, info: DataInfo) -> Any:
    """Build a plain ViT to pre-train; raises `ConfigError` for another model, and without a norm behind its blocks."""
    where = f"student {config.name}"
    student: Any = create_student(config, info)
    check_encoder(student, where)
    if isinstance(student.norm, nn.Identity):
        raise ConfigError(f"{where}: pools its patches before the norm; set student.kwargs.global_pool=token")
    return student
