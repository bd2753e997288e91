"""Export the student of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch

from vitutor_core.errors import CheckpointError
from vitutor_core.files import write_text
from vitutor_core.models.weights import ModelCard, load_model, save_model
from vitutor_core.runs import RunDir, RunRecord

_CARD = """# {name}

Trained by ViTutor's {method}, {classes} classes, {size} px input. {quality}

```python
{setup}import timm

model = timm.create_model("{name}", checkpoint_path="{file}", {kwargs})
```

Input: pixels in [0, 1], normalised with mean {mean} and standard deviation {std}.
Classes, in the order of the logits: {class_names}.
"""


def export_run(run: Path, target: Path, package: str) -> list[str]:
    """Write weights that timm loads and a model card, after checking that timm does; return what to tell the user."""
    RunRecord.read(run, package)
    model, card = load_model(RunDir(run).weights)
    save_model(target, model, card)
    kwargs: dict[str, Any] = {"num_classes": len(card.class_names), **card.kwargs}
    again = timm.create_model(card.name, checkpoint_path=str(target), **kwargs)
    if any(
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    ):
        raise CheckpointError(f"{target}: timm does not read the weights back")
    page = target.with_suffix(".md")
    write_text(page, _page(card, kwargs, target.name, package))
    return [f"weights {target}", f"card    {page}"]


def _page(card: ModelCard, kwargs: dict[str, Any], file: str, package: str) -> str:
    own = timm.model_entrypoint(card.name).__module__.partition(".")[0] == package
    return _CARD.format(
        name=card.name,
        method=card.method,
        classes=len(card.class_names),
        size=card.image_size,
        quality=f"Top-1 {card.metrics['top1']:.2f} % on held-out images."
        if "top1" in card.metrics
        else "Its head is not trained: fine-tune it.",
        setup=f"import {package}.models  # registers {card.name} with timm\n" if own else "",
        file=file,
        kwargs=", ".join(f"{name}={value!r}" for name, value in kwargs.items()),
        mean=card.mean,
        std=card.std,
        class_names=", ".join(card.class_names),
    )
