"""Load a trained model: a finished run of any paper, an exported folder, a weights file, or timm's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.hub import WEIGHTS
from vitutor_core.paper import installed_paper, load
from vitutor_core.runs import RunDir

if TYPE_CHECKING:
    from torch import nn

    from vitutor_core.models.weights import ModelCard


def load_any(path: Path, *, ema: bool = False) -> tuple[nn.Module, ModelCard]:
    """Rebuild the model of ``path``; with ``ema``, a run's averaged weights. Raises `CheckpointError`."""
    from vitutor_core.models.weights import load_model, read_card

    file = file_of_export(path)
    if file.is_dir():
        file = run_weights(path, ema=ema)
    card = read_card(file)
    if card is None:
        raise CheckpointError(f"{file.absolute()}: has no model card; `vitutor convert` writes one")
    _register(card.method)
    return load_model(file)


def file_of_export(path: Path) -> Path:
    """Return the weights file of an exported folder, which is no run; of anything else ``path``."""
    is_export = (path / WEIGHTS).exists() and not RunDir(path).weights.exists()
    return path / WEIGHTS if is_export else path


def load_named(name: Path) -> tuple[nn.Module, ModelCard]:
    """Return the encoder that timm has weights for by this name, without its head; raises `ConfigError`."""
    from vitutor_core.models.named import named_model
    from vitutor_core.models.weights import ModelCard, create_model
    from vitutor_core.schema import KwargValue, ModelConfig

    try:
        found = named_model(str(name))
    except ConfigError as error:
        raise ConfigError(f"{name.absolute()}: there is no such run or file, and no such model: {error}") from None
    if found.cfg is None or found.classes is None:
        raise ConfigError(f"{name}: timm has no weights for it; give a run, or a file of 'vitutor convert'")
    cfg, side = found.cfg, found.cfg.input_size[-1]
    kwargs: dict[str, KwargValue] = {"num_classes": 0}
    config = ModelConfig(name=str(name), pretrained=True, kwargs=kwargs)
    card = ModelCard(
        name=found.architecture,
        kwargs=kwargs,
        class_names=(),
        image_size=side,
        mean=cfg.mean,
        std=cfg.std,
        crop_ratio=cfg.crop_pct,
        interpolation=cfg.interpolation,
        method="timm",
    )
    return create_model(config, num_classes=0, image_size=side, channels=3), card


def run_weights(run: Path, *, ema: bool) -> Path:
    """Return the weights of a run, or the average of them; raises `CheckpointError` if none was kept."""
    weights, averaged = RunDir(run).weights, RunDir(run).ema_weights
    if not weights.exists():
        begun = (run / "run.json").exists()
        what = "not a finished run; train it to its end first" if begun else "no such weights file"
        raise CheckpointError(f"{weights.absolute()}: {what}")
    if ema and not averaged.exists():
        raise CheckpointError(f"{run.absolute()}: it kept no average of its weights; train it with train.ema_decay set")
    return averaged if ema else weights


def _register(method: str) -> None:
    """Import the papers that trained a model, which registers their models with timm; only installed ones of ours."""
    for package in method.split("+"):
        # A model of core or timm needs nothing, and for another the message of timm is good.
        with contextlib.suppress(ConfigError):
            load(installed_paper(package).method)
