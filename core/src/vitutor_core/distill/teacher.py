"""A frozen teacher: evaluation mode, no gradients, its own input size and normalisation, classes checked by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F

from vitutor_core.data.types import DataInfo
from vitutor_core.errors import ConfigError
from vitutor_core.models.border import check_border
from vitutor_core.models.fit import Fitted, classifier_of, fit
from vitutor_core.models.intermediates import forward_features, read_intermediates
from vitutor_core.models.layouts import OWN
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import (
    create_model,
    load_model,
    read_card,
    say_changes,
    weights_sha256,
)
from vitutor_core.runs import weights_file
from vitutor_core.schema import ModelConfig, TeacherConfig


class Taught(NamedTuple):
    """What a teacher says of a batch: logits (B, K), and maps (B, C, H, W) in the order asked for."""

    logits: Tensor
    features: tuple[Tensor, ...]


class FrozenTeacher:
    """Wraps a teacher so that it is never trained, saved or synchronised: it is not an ``nn.Module``.

    model: the network. mean, std: its normalisation of pixels in [0, 1]. image_size: its input side, in pixels.
    info: the data as the student sees them; batches come in the student's normalisation and size.
    top1: its known accuracy in percent, for the record. gives_logits: whether its classes are those of the data.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int,
        info: DataInfo,
        top1: float | None = None,
        gives_logits: bool = True,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.facts = {"name": name, "sha256": weights_sha256(model.state_dict()), "top1": top1}
        self.input: dict[str, Any] = {"image_size": image_size, "mean": list(mean), "std": list(std)}
        self._gives_logits = gives_logits
        self._image_size = image_size
        self._resize = image_size != info.image_size
        # (x * std_S + mean_S - mean_T) / std_T, as one multiplication and one addition
        student_mean, student_std = torch.tensor(info.mean), torch.tensor(info.std)
        self._scale = (student_std / torch.tensor(std)).view(1, -1, 1, 1)
        self._shift = ((student_mean - torch.tensor(mean)) / torch.tensor(std)).view(1, -1, 1, 1)
        self._renormalise = tuple(mean) != info.mean or tuple(std) != info.std
        self._device: torch.device | None = None

    @torch.no_grad()
    def __call__(self, images: Tensor, *, features: Sequence[int | str] = (), logits: Tensor | None = None) -> Taught:
        """Return logits (B, K) and the named intermediate maps for the student's images (B, C, H, W).

        Where the ``logits`` are known, the network is run no further than the deepest of the features.
        """
        if self.model.training:
            raise ValueError("the teacher was put into training mode")
        if logits is not None and not features:
            return Taught(logits, ())
        if not features and not self._gives_logits:
            raise ValueError("the teacher was loaded with reads_logits=False, and its logits are read")
        images = self.adapt(images)
        if logits is not None:
            return Taught(logits, forward_features(self.model, images, features))
        outputs = read_intermediates(self.model, images, features=features)
        return Taught(outputs.logits, outputs.features)

    def to(self, device: torch.device) -> Self:
        """Move the network; calls do so by themselves, but not where torch.compile captures them."""
        self._device = device
        self.model.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    def adapt(self, images: Tensor) -> Tensor:
        """Change the student's images (B, C, H, W) to the teacher's normalisation and size, on their own device."""
        if self._device != images.device:
            self.to(images.device)
        if self._renormalise:
            images = images * self._scale + self._shift
        if self._resize:
            size = (self._image_size, self._image_size)
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        return images


def teachers_within(module: nn.Module) -> Iterator[FrozenTeacher]:
    """Yield the teachers that a module and its submodules have as attributes, alone or by role."""
    for part in module.modules():
        for value in vars(part).values():
            found = value.values() if isinstance(value, Mapping) else (value,)
            yield from (teacher for teacher in found if isinstance(teacher, FrozenTeacher))


def load_teacher(config: TeacherConfig, info: DataInfo, *, reads_logits: bool = True) -> FrozenTeacher:
    """Load the teacher that a config names, for the data at hand.

    ``reads_logits`` is False of a method that takes nothing but maps or attention from this teacher, which may then
    have learnt other classes, or none.

    Raises `ConfigError` where its classes differ from the data's, in number or by name, and logits are read, and
    `CheckpointError` where its weights cannot be used.
    """
    path = weights_file(Path(config.weights)) if config.weights is not None else None
    if path is not None and (config.model is None or read_card(path) is not None):
        model, card = load_model(path)
        if reads_logits:
            check_classes(card.class_names, info.class_names, where=str(path.absolute()))
        size = config.image_size or card.image_size
        check_border(model, card.name, size)
        top1 = card.metrics.get("top1")
        return FrozenTeacher(
            model,
            name=card.name,
            mean=card.mean,
            std=card.std,
            image_size=size,
            info=info,
            top1=top1,
            gives_logits=reads_logits,
        )
    if config.model is None:
        raise ConfigError("teacher: no weights given; set teacher.weights, or teacher.model to a timm name")
    if path is None:
        _check_pretrained(config.model, info, reads_logits=reads_logits)
    found = named_model(config.model.name)
    own_size = found.cfg.input_size[-1] if found.folder is not None and found.cfg is not None else info.image_size
    size = config.image_size or own_size
    model = create_model(config.model, num_classes=info.num_classes, image_size=size, channels=info.channels)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    if path is not None and _load_plain(model, path, reads_logits=reads_logits).layout != OWN.family:
        cfg = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}  # as `convert` takes it of these families
    return FrozenTeacher(
        model,
        name=config.model.name,
        mean=cfg.get("mean") or info.mean,
        std=cfg.get("std") or info.std,
        image_size=size,
        info=info,
        gives_logits=reads_logits,
    )


def check_classes(teacher: Sequence[str], student: Sequence[str], *, where: str) -> None:
    """Compare class lists by number, then by name and order; raises `ConfigError`."""
    if len(teacher) != len(student):
        raise ConfigError(f"{where}: the teacher knows {len(teacher)} classes, the data has {len(student)}")
    for index, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
        if theirs != ours:
            raise ConfigError(f"{where}: class {index} is '{theirs}' for the teacher and '{ours}' in the data")


def _check_pretrained(config: ModelConfig, info: DataInfo, *, reads_logits: bool) -> None:
    """Check what timm's weights know before they are downloaded."""
    if not config.pretrained:
        raise ConfigError("teacher.model: an untrained teacher; set teacher.model.pretrained=true or teacher.weights")
    found = named_model(config.name)
    classes = found.classes
    if classes is None:
        raise ConfigError(f"teacher.model: timm has no weights for {config.name}; train it, or set teacher.weights")
    is_encoder = classes == 0 and config.kwargs.get("num_classes") == 0
    if is_encoder or not reads_logits:
        return  # no classes to compare
    if classes == 0:
        raise ConfigError(
            f"teacher {config.name} has no classes; set teacher.model.kwargs.num_classes=0, if it is to teach by its "
            "maps, or train a teacher from it"
        )
    if classes != info.num_classes:
        raise ConfigError(
            f"teacher {config.name} has {classes} classes, the data {info.name} {info.num_classes}; "
            "train a teacher on this data, or pass its weights"
        )
    if found.folder is not None and found.cfg is not None and found.cfg.label_names:
        check_classes(found.cfg.label_names, info.class_names, where=f"teacher {config.name}")


def _load_plain(model: nn.Module, path: Path, *, reads_logits: bool) -> Fitted:
    where = str(path.absolute())
    fitted = fit(load_file(path), model, where=where, optional=() if reads_logits else classifier_of(model))
    say_changes(where, (*fitted.changed, *fitted.left))
    model.load_state_dict(fitted.tensors)
    return fitted
