"""Records of finished runs, for tests that need one without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitutor_core.runs import RunRecord


def write_record(run: Path, **values: Any) -> None:
    """Write the record of a run; what is not given is made up."""
    made_up: dict[str, Any] = {"paper": "supervised", "row": "row", "scale": "digits", "seed": 0, "metrics": {}}
    made_up |= {"train_images": 1, "fingerprint": "f", "data_fingerprint": "d", "teachers": {}, "command": "c"}
    RunRecord.of(**(made_up | {"config": {}, "seconds": 1.0} | values)).write(run)
