"""The network to invert, and what is known of its data without having them: classes, size, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from timm.data.imagenet_info import infer_imagenet_subset
from torch import Tensor
from torch.nn import functional as F

from dearkd.generation.config import GenerationConfig
from dearkd.generation.objective import BatchNormStatistics
from vitutor_core.data.types import DataInfo
from vitutor_core.distill import FrozenTeacher
from vitutor_core.distill.teacher import load_teacher
from vitutor_core.errors import ConfigError
from vitutor_core.models.intermediates import read_intermediates
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import read_card
from vitutor_core.runs import weights_file
from vitutor_core.schema import TeacherConfig


def open_teacher(config: GenerationConfig, device: torch.device) -> tuple[FrozenTeacher, DataInfo]:
    """Load the teacher; raises `ConfigError` where it cannot be inverted with this config."""
    info = describe(config.teacher)
    wanted, known = config.classes_per_batch, info.num_classes
    if wanted > known:
        raise ConfigError(f"classes_per_batch is {wanted}, the teacher has {known} classes")
    if config.grey and (len(set(info.mean)) > 1 or len(set(info.std)) > 1):
        raise ConfigError("grey: the teacher's normalisation differs between channels; set grey=false")
    side = max(phase.shrink for phase in config.phases)
    if info.image_size % side:
        raise ConfigError(f"phases: the teacher's {info.image_size} px are not a multiple of shrink {side}")
    teacher = load_teacher(config.teacher, info).to(device)
    BatchNormStatistics(teacher.model, first=1.0)  # raises where there are none
    return teacher, info


def open_competitor(
    path: str, info: DataInfo, device: torch.device
) -> tuple[FrozenTeacher, Callable[[Tensor], Tensor]]:
    """Load the student that adaptive inversion disagrees with; return it and its logits as a function of a view.

    Views of a first phase are enlarged, since vision transformers are built for one size.
    """
    student = load_teacher(TeacherConfig(weights=path), info).to(device)

    def logits(view: Tensor) -> Tensor:
        size = (info.image_size, info.image_size)
        if view.shape[-2:] != size:
            view = F.interpolate(view, size, mode="bilinear", align_corners=False)
        return read_intermediates(student.model, student.adapt(view)).logits

    return student, logits


def describe(config: TeacherConfig) -> DataInfo:
    """Return what a teacher's weights say of its data: from its model card, else from timm's record of the weights."""
    if config.weights is not None:
        card = read_card(weights_file(Path(config.weights)))
        if card is not None:
            return _info(card.class_names, config.image_size or card.image_size, card.mean, card.std)
    cfg = named_model(config.model.name).cfg if config.model is not None else None
    subset = infer_imagenet_subset(cfg.to_dict()) if cfg is not None else None
    if cfg is None or subset is None:
        raise ConfigError("teacher: its classes have no names; give a run folder, or one of timm's ImageNet models")
    names = tuple(ImageNetInfo(subset).label_names())
    return _info(names, config.image_size or cfg.input_size[-1], cfg.mean, cfg.std)


def _info(class_names: tuple[str, ...], image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> DataInfo:
    return DataInfo(
        name="generated",
        class_names=class_names,
        image_size=image_size,
        channels=len(mean),
        mean=mean,
        std=std,
        num_train=0,
        num_eval=0,
        fingerprint="",
    )
