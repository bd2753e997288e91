"""Linear probing: a linear classifier on the frozen encoder (protocol of MAE, arXiv 2111.06377, appendix A)."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from mae_lite_distill.config import MAELiteConfig
from mae_lite_distill.models.start import build_from_encoder
from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.train.method import Clock, Method, StepOutput


class LinearProbe(Method):
    """A BatchNorm without affine parameters and a linear layer, on the features of an encoder that never changes.

    The student is evaluated and published with both folded into its head, so it is a plain timm model.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student: Any = student.requires_grad_(False)
        head: Any = self.student.head
        features, classes = head.in_features, head.out_features
        self.normalise = nn.BatchNorm1d(features, affine=False, eps=1e-6)
        self.classify = nn.Linear(features, classes)
        nn.init.trunc_normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(self.classify.bias)

    @classmethod
    def build(cls, config: MAELiteConfig, info: DataInfo) -> Self:
        """Build the encoder, from its start row if the config names one."""
        return cls(build_from_encoder(config, info))

    def train(self, mode: bool = True) -> Self:
        """Keep the encoder in evaluation mode."""
        super().train(mode)
        self.student.eval()
        return self

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        with torch.no_grad():
            features = self.student.forward_head(self.student.forward_features(batch.images), pre_logits=True)
        loss = F.cross_entropy(self.classify(self.normalise(features)), batch.targets)
        return StepOutput(loss)

    @torch.no_grad()
    def inference_model(self) -> nn.Module:
        """Return the student with the running statistics and the classifier in its head."""
        head, norm = self.student.head, self.normalise
        assert norm.running_var is not None  # noqa: S101  # tracked, as they are by default
        assert norm.running_mean is not None  # noqa: S101
        weight = self.classify.weight * (norm.running_var + norm.eps).rsqrt()
        head.weight.copy_(weight)
        head.bias.copy_(self.classify.bias - weight @ norm.running_mean)
        return self.student  # type: ignore[no-any-return]
