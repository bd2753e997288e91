"""A paper's objective in a training loop of one's own, around models that are at hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vitutor_core.data.types import Batch, DataInfo
from vitutor_core.distill.teacher import FrozenTeacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.named import input_size
from vitutor_core.train.method import Clock, Method, StepOutput


class Objective(nn.Module):
    """A method with the student in it: ``objective(images, targets).loss`` is the whole loss of a step.

    Its parameters are the student's and those that the paper trains beside it; the student stays as it is and is all
    that is needed afterwards. ``epochs`` is the length of the training, for terms that change with it.
    """

    def __init__(self, method: Method, *, epochs: int = 1) -> None:
        super().__init__()
        self.method = method
        self._epochs = epochs

    def forward(self, images: Tensor, targets: Tensor | None = None, *, epoch: int = 0) -> StepOutput:
        """Return the objective of images (B, C, H, W), normalised as the student's ``pretrained_cfg`` says.

        ``targets`` are class ids (B,) or distributions (B, K); None where the paper has no labels.
        """
        if targets is None:
            targets = torch.zeros(images.shape[0], dtype=torch.int64, device=images.device)
        batch = Batch(images, targets, torch.arange(images.shape[0], device=images.device))
        clock = Clock(epoch, 1, self._epochs)
        output: StepOutput = self.method(self.method.prepare(batch, clock), clock)
        return output


def describe(model: Any) -> DataInfo:
    """Return what a timm model says of its images; classes are numbered."""
    channels, size, _ = input_size(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return DataInfo(
        name="own",
        class_names=tuple(map(str, range(model.num_classes))),
        image_size=size,
        channels=channels,
        mean=tuple(cfg.get("mean") or (0.5,) * channels),
        std=tuple(cfg.get("std") or (0.5,) * channels),
        num_train=0,
        num_eval=0,
        fingerprint="",
    )


def frozen(teacher: Any, info: DataInfo) -> FrozenTeacher:
    """Freeze a timm model as teacher of a student with images ``info``, in its own size and normalisation.

    Its size is that of the images unless it is built for one. Raises `ConfigError` where it knows other classes.
    """
    if isinstance(teacher, FrozenTeacher):
        return teacher
    if teacher.num_classes not in (0, info.num_classes):
        raise ConfigError(f"the teacher knows {teacher.num_classes} classes, the student {info.num_classes}")
    cfg = getattr(teacher, "pretrained_cfg", None) or {}
    return FrozenTeacher(
        teacher,
        name=cfg.get("architecture") or type(teacher).__name__,
        mean=tuple(cfg.get("mean") or info.mean),
        std=tuple(cfg.get("std") or info.std),
        image_size=input_size(teacher)[1] if cfg.get("fixed_input_size") else info.image_size,
        info=info,
    )
