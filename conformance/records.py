"""Records of finished runs and cards of weights files, for tests that need one without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitutor_core.models.weights import ModelCard
from vitutor_core.runs import RunRecord


def write_record(run: Path, **values: Any) -> None:
    """Write the record of a run; what is not given is made up."""
    made_up: dict[str, Any] = {"paper": "supervised", "row": "row", "scale": "digits", "seed": 0, "metrics": {}}
    made_up |= {"train_images": 1, "fingerprint": "f", "data_fingerprint": "d", "teachers": {}, "command": "c"}
    RunRecord.of(**(made_up | {"config": {}, "seconds": 1.0} | values)).write(run)


def made_up_card(**values: Any) -> ModelCard:
    """Return the card of a weights file; what is not given is made up."""
    made_up: dict[str, Any] = {"name": "resnet8_tiny", "kwargs": {}, "class_names": ("a", "b", "c"), "image_size": 16}
    made_up |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "crop_ratio": 1.0, "interpolation": "bilinear"}
    return ModelCard(**(made_up | {"method": "test"} | values))
