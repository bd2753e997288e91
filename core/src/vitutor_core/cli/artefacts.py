"""What is done with a finished run: evaluate it again, export its student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

from vitutor_core.data.build import build_data
from vitutor_core.errors import CheckpointError
from vitutor_core.evaluate.accuracy import evaluate
from vitutor_core.evaluate.complexity import complexity, throughput
from vitutor_core.models.weights import ModelCard, load_model, save_model
from vitutor_core.schema import RunConfig
from vitutor_core.train.distributed import choose_device, effective_precision
from vitutor_core.train.publish import WEIGHTS_NAME

_CARD = """# {name}

Trained by ViTutor's {method}, {classes} classes, {size} px input. {quality}

```python
{setup}import timm

model = timm.create_model("{name}", checkpoint_path="{file}", {kwargs})
```

Input: pixels in [0, 1], normalised with mean {mean} and standard deviation {std}.
Classes, in the order of the logits: {class_names}.
"""


def evaluate_run(run: Path, schema: type[RunConfig], package: str, *, speed: bool) -> dict[str, Any]:
    """Return accuracy, calibration error, parameters and FLOPs (and images/s) of a finished run."""
    result = _result(run, package)
    config: RunConfig = schema.from_mapping(result["config"], where=str(run / "metrics.json"))
    device = choose_device(config.runtime.device)
    model, card = load_model(run / WEIGHTS_NAME)
    model.to(device)
    metrics: dict[str, Any] = {}
    if "top1" in result["metrics"]:  # else the head is not trained
        data = build_data(config, device=device)
        try:
            metrics = evaluate(
                model,
                data.evaluation,
                num_classes=data.info.num_classes,
                device=device,
                precision=effective_precision(config.train.precision, device),
            )
        finally:
            data.train.close()
    metrics |= complexity(model, card.image_size, channels=len(card.mean))
    if speed:
        metrics["images_per_s"] = throughput(
            model, card.image_size, device=device, batch_size=config.runtime.eval_batch_size
        )
    return metrics


def export_run(run: Path, target: Path, package: str) -> list[str]:
    """Write weights that timm loads and a model card, after checking that timm does; return what to tell the user."""
    _result(run, package)
    model, card = load_model(run / WEIGHTS_NAME)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_model(target, model, card)
    kwargs: dict[str, Any] = {"num_classes": len(card.class_names), **card.kwargs}
    again = timm.create_model(card.name, checkpoint_path=str(target), **kwargs)
    if any(
        not torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    ):
        raise CheckpointError(f"{target}: timm does not read the weights back")
    page = target.with_suffix(".md")
    page.write_text(_page(card, kwargs, target.name, package))
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


def _result(run: Path, package: str) -> dict[str, Any]:
    path = run / "metrics.json"
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        found = result["paper"]
    except (OSError, ValueError, KeyError):
        raise CheckpointError(f"{path.absolute()}: not a finished run; train it to its end first") from None
    if found != package:
        raise CheckpointError(f"{run.absolute()}: a run of method {found}, expected {package}")
    return result
