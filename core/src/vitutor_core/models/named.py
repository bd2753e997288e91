"""What is known of a model by its name before it is built: timm's own, and those of a folder or of the Hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_path

from vitutor_core.config import nearest
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.hub import named_folder

_OF_THE_DATA = ("num_classes", "in_chans", "img_size")


class NamedModel(NamedTuple):
    """``architecture`` is a name that timm registers, with its tag if it has one; ``kwargs`` are what was saved of it.

    ``cfg`` is timm's description of the weights, None where there are none; ``folder`` is where they are, of a model
    that is none of timm's own.
    """

    architecture: str
    kwargs: dict[str, Any]
    cfg: PretrainedCfg | None
    folder: Path | None

    @property
    def takes_image_size(self) -> bool:
        """Whether it is built for one input size, as ViTs are and CNNs are not."""
        return self.cfg is not None and bool(self.cfg.fixed_input_size)

    @property
    def classes(self) -> int | None:
        """For how many classes the weights are; None where there are no weights."""
        return self.cfg.num_classes if self.cfg is not None and self.cfg.has_weights else None


def named_model(name: str) -> NamedModel:
    """Look a model up; raises `ConfigError` for an unknown name, and `CheckpointError` for a folder that is none."""
    folder = named_folder(name)
    if folder is None:
        check_registered(name)
        try:
            return NamedModel(name, {}, timm.get_pretrained_cfg(name), None)
        except RuntimeError as error:
            raise ConfigError(f"model '{name}': {error}") from None
    try:
        cfg, architecture, saved = load_model_config_from_path(folder)
        known = {field.name for field in dataclasses.fields(PretrainedCfg)}
        described = PretrainedCfg(**{key: value for key, value in cfg.items() if key in known})
        kwargs = {key: value for key, value in dict(saved or {}).items() if key not in _OF_THE_DATA}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name}: its config.json is not one of timm's ({error})") from None
    check_registered(architecture)
    return NamedModel(architecture, kwargs, described, folder)


def check_registered(name: str) -> None:
    """Raise `ConfigError` for a name that is none of timm's own, those of folders and of the Hub included."""
    base = name.partition(".")[0]
    if not timm.is_model(base):
        raise ConfigError(f"model '{name}' is not registered with timm{nearest(base, timm.list_models())}")


def input_size(model: Any) -> tuple[int, int, int]:
    """Return channels, height and width of the images that a timm model was built for."""
    channels, height, width = model.default_cfg["input_size"]
    height, width = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    return getattr(model, "in_chans", channels), height, width
