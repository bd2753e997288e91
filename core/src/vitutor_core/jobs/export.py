"""Export the student of a finished run: as weights, as a folder that timm and the Hub read, or as a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.build import eval_loader
from vitutor_core.errors import CheckpointError, ConfigError
from vitutor_core.evaluate.labelled import data_for, labelled_images
from vitutor_core.files import replace_folder, write_text
from vitutor_core.hub import CONFIG, WEIGHTS, push
from vitutor_core.jobs.models import file_of_export, run_weights
from vitutor_core.models.program import save_exported, save_onnx
from vitutor_core.models.timm_folder import package_of, save_timm_folder
from vitutor_core.models.weights import ModelCard, load_model, save_model
from vitutor_core.report.card import card_page, card_text
from vitutor_core.runs import RunRecord
from vitutor_core.schema import DataConfig, RuntimeConfig

_FOREIGN = (".pth", ".pt", ".bin", ".ckpt", ".onnx", ".pt2")
_IMAGES = 16
"""On which a program is compared with the model."""


@dataclass(frozen=True)
class Targets:
    """Where an export goes; each is a path to write, but ``push``, the repository that gets the folder ``to``."""

    to: Path | None = None
    onnx: Path | None = None
    torch_export: Path | None = None
    push: str | None = None


def export_run(run: Path, targets: Targets, package: str, *, ema: bool = False, source: str | None = None) -> list[str]:
    """Write what ``targets`` names, each checked by reading it again; return what to tell the user.

    ``to`` is a file if it ends with ``.safetensors``, else a folder. ``ema`` takes the averaged weights. Programs are
    compared with the model on images of ``source``, or of the run's own evaluation.
    """
    to, programs = targets.to, {save_onnx: targets.onnx, save_exported: targets.torch_export}
    if to is None and not any(programs.values()):
        raise ConfigError("export: nothing to write; give --to, --onnx or --torch-export")
    if to is not None and to.suffix in _FOREIGN:
        raise ConfigError(f"--to {to}: weights are written as NAME.safetensors, or into a folder, which timm reads")
    if targets.push is not None and (to is None or to.suffix == ".safetensors"):
        raise ConfigError("--push: it pushes the folder of --to; give --to FOLDER, too")
    weights = file_of_export(run)
    record = None if weights.is_file() else RunRecord.read(run, package)
    if record is None and ema:
        raise ConfigError(f"{run}: weights alone have no average; leave --ema out")
    model, card = load_model(weights if record is None else run_weights(run, ema=ema))
    lines: list[str] = []
    if any(programs.values()):
        images = _real_images(record, card, source)
        for save, path in programs.items():
            if path is not None:
                largest = save(path, model, card, images)
                lines.append(f"program {path}: logits of {len(images)} images differ by {largest:.1g} at most")
    if to is not None:
        write = _export_file if to.suffix == ".safetensors" else _export_folder
        lines += write(to, model, card, record)
        owner = package_of(card)
        if owner is not None:
            lines.append(f"note    import {owner}.models first: timm alone does not know {card.name}")
        if targets.push is not None:
            lines.append(f"pushed  {push(to, targets.push, message=card_text(record, card))}")
    return lines


def _real_images(record: RunRecord | None, card: ModelCard, source: str | None) -> Tensor:
    """Return the first evaluation images (N, 3, S, S) of a source, as the model gets them."""
    where = "metrics.json"
    if record is not None:
        data = DataConfig.from_mapping(record.config["data"], where=where)
        runtime = RuntimeConfig.from_mapping(record.config["runtime"], where=where).changed(["workers=0"])
    elif source is not None:
        data, runtime = data_for(card, source), RuntimeConfig(workers=0)
    else:
        raise ConfigError("export: weights alone do not say which images they know; compare the program on --source")
    split = labelled_images(data, card.class_names, source=source)
    chosen = np.arange(min(_IMAGES, len(split.labels)))
    device = torch.device("cpu")
    normalise = Normalise(card.mean, card.std, device)
    loader = eval_loader(split, chosen, data, runtime, normalise=normalise, device=device)
    return torch.cat([images for images, _ in loader])


def _export_file(target: Path, model: nn.Module, card: ModelCard, record: RunRecord | None) -> list[str]:
    save_model(target, model, card)
    kwargs: dict[str, Any] = {"num_classes": len(card.class_names), **card.kwargs}
    again = timm.create_model(card.name, checkpoint_path=str(target), **kwargs)
    if any(
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    ):
        raise CheckpointError(f"{target}: timm does not read the weights back")
    arguments = [f'"{card.name}"', f'checkpoint_path="{target.name}"', *(f"{name}={kwargs[name]!r}" for name in kwargs)]
    page = target.with_suffix(".md")
    write_text(page, card_page(record, card, ", ".join(arguments)))
    return [f"weights {target}", f"card    {page}"]


def _export_folder(target: Path, model: nn.Module, card: ModelCard, record: RunRecord | None) -> list[str]:
    with replace_folder(target, CONFIG, WEIGHTS, "README.md") as partial:
        save_timm_folder(partial, model, card)
        call = f'"local-dir:{target.resolve().name}", pretrained=True'
        write_text(partial / "README.md", card_page(record, card, call, is_folder=True))
    return [f'folder  {target}: timm.create_model("local-dir:{target}", pretrained=True)']
