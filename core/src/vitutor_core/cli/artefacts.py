"""Export the student of a finished run: a file of weights, or a folder that timm and the Hub read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from vitutor_core.cli.models import run_weights
from vitutor_core.errors import CheckpointError
from vitutor_core.files import replace_folder, write_text
from vitutor_core.models.timm_folder import EXPORTED_NAME, package_of, save_timm_folder
from vitutor_core.models.weights import ModelCard, load_model, save_model
from vitutor_core.runs import RunRecord

_CARD = """{front}# {name}

Trained by ViTutor's {method}, {classes} classes, {size} px input. {quality}

```python
{setup}import timm

model = timm.create_model({call}).eval()
{transform}```

Input: RGB, the shorter side resized to {resize} px ({interpolation}), the central {size} x {size} px; pixels in [0, 1],
normalised with mean {mean} and standard deviation {std}.
Classes, in the order of the logits: {class_names}.
"""
_FRONT = """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, vitutor]
---
"""
_TRANSFORM = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"


def export_run(run: Path, target: Path, package: str, *, ema: bool = False) -> list[str]:
    """Write weights and a model card, after checking that timm reads them; return what to tell the user.

    ``target`` is a file if it ends with ``.safetensors``, else a folder. ``ema`` takes the averaged weights.
    """
    RunRecord.read(run, package)
    model, card = load_model(run_weights(run, ema=ema))
    write = _export_file if target.suffix == ".safetensors" else _export_folder
    lines = write(target, model, card)
    owner = package_of(card)
    note = f"note    import {owner}.models first: timm alone does not know {card.name}"
    return lines if owner is None else [*lines, note]


def _export_file(target: Path, model: nn.Module, card: ModelCard) -> list[str]:
    save_model(target, model, card)
    kwargs: dict[str, Any] = {"num_classes": len(card.class_names), **card.kwargs}
    again = timm.create_model(card.name, checkpoint_path=str(target), **kwargs)
    if any(
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    ):
        raise CheckpointError(f"{target}: timm does not read the weights back")
    arguments = (f"{name}={value!r}" for name, value in kwargs.items())
    page = target.with_suffix(".md")
    write_text(page, _page(card, ", ".join([f'"{card.name}"', f'checkpoint_path="{target.name}"', *arguments])))
    return [f"weights {target}", f"card    {page}"]


def _export_folder(target: Path, model: nn.Module, card: ModelCard) -> list[str]:
    with replace_folder(target, "config.json", EXPORTED_NAME, "README.md") as partial:
        save_timm_folder(partial, model, card)
        call = f'"local-dir:{target.resolve().name}", pretrained=True'
        write_text(partial / "README.md", _page(card, call, front=_FRONT, transform=_TRANSFORM))
    return [f'folder  {target}: timm.create_model("local-dir:{target}", pretrained=True)']


def _setup(card: ModelCard) -> str:
    package = package_of(card)
    return "" if package is None else f"import {package}.models  # registers {card.name} with timm\n"


def _page(card: ModelCard, call: str, *, front: str = "", transform: str = "") -> str:
    return _CARD.format(
        front=front,
        name=card.name,
        method=card.method,
        classes=len(card.class_names),
        size=card.image_size,
        quality=f"Top-1 {card.metrics['top1']:.2f} % on held-out images."
        if "top1" in card.metrics
        else "Its head is not trained: fine-tune it.",
        setup=_setup(card),
        call=call,
        transform=transform,
        resize=round(card.image_size / card.crop_ratio),
        interpolation=card.interpolation,
        mean=card.mean,
        std=card.std,
        class_names=", ".join(card.class_names),
    )
