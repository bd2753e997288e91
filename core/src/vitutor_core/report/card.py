"""The model card that lies beside exported weights: how to load them, what trained them, and how well."""

from __future__ import annotations

from pathlib import Path

from vitutor_core.models.timm_folder import package_of
from vitutor_core.models.weights import CONVERTED, ModelCard
from vitutor_core.runs import RunRecord

_PAGE = """{front}# {name}

{summary}

## How to load it

```python
{setup}import timm
{pillow}
model = timm.create_model({call}).eval()
{transform}```

Input: RGB, turned by its EXIF orientation and over white where it is transparent, which timm leaves to you; the shorter
side resized to {resize} px ({interpolation}), the central {size} x {size} px; pixels in [0, 1], normalised with mean
{mean} and standard deviation {std}.
{classes}

## What trained it

| | |
|---|---|
{training}
"""
_FRONT = """---
library_name: timm
pipeline_tag: image-classification
tags: [image-classification, timm, vitutor]
---
"""
_TRANSFORM = """transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")  # phones store photographs turned
logits = model(transform(image).unsqueeze(0))
"""


def card_page(record: RunRecord | None, card: ModelCard, call: str, *, is_folder: bool = False) -> str:
    """Return the card as Markdown; ``call`` are the arguments of ``timm.create_model``."""
    package = package_of(card)
    return _PAGE.format(
        front=_FRONT if is_folder else "",
        name=card.name,
        summary=card_text(record, card),
        size=card.image_size,
        setup="" if package is None else f"import {package}.models  # registers {card.name} with timm\n",
        call=call,
        pillow="from PIL import Image, ImageOps\n" if is_folder else "",
        transform=_TRANSFORM if is_folder else "",
        resize=round(card.image_size / card.crop_ratio),
        interpolation=card.interpolation,
        mean=card.mean,
        std=card.std,
        classes=f"Classes, in the order of the logits: {', '.join(card.class_names)}."
        if card.class_names
        else "No head.",
        training="\n".join(f"| {name} | {value} |" for name, value in _training(record, card)),
    )


def card_text(record: RunRecord | None, card: ModelCard) -> str:
    """Say in two sentences what a model is."""
    if card.method == CONVERTED:
        quality = "Its accuracy was not measured."
    elif "top1" in card.metrics:
        number = {} if record is None else record.metrics
        images = f"{number['images']:,.0f} " if "images" in number else ""
        quality = f"Top-1 {card.metrics['top1']:.2f} % on {images}held-out images."
    else:
        quality = "Its head is not trained: fine-tune it."
    origin = "Published weights" if card.method == CONVERTED else f"Trained by ViTutor's {card.method}"
    return f"{origin}, {len(card.class_names) or 'no'} classes, {card.image_size} px input. {quality}"


def _training(record: RunRecord | None, card: ModelCard) -> list[tuple[str, str]]:
    if record is None and card.method == CONVERTED:
        return [("weights", "converted: their licence is that of their authors")]
    if record is None:  # of a weights file
        return [("method", card.method)]
    kind, colon, where = str((record.config.get("data") or {}).get("source")).partition(":")
    source = f"{kind}{colon}{Path(where).name}"  # where it lies on this machine is nobody's business
    teachers = [
        (f"teacher {role}", teacher.name + ("" if teacher.top1 is None else f", top-1 {teacher.top1:.2f} %"))
        for role, teacher in record.teachers.items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    return [
        ("method", f"{record.paper}, {record.row}, scale {record.scale}, seed {record.seed}"),
        *teachers,
        ("data", f"{source}, {record.train_images:,} images, fingerprint {record.data_fingerprint}"),
        ("length", f"{record.epochs:,} epochs, {record.updates:,} updates"),
        ("config", f"fingerprint {record.fingerprint}"),
        ("commit", record.commits),
        ("versions", versions),
    ]
