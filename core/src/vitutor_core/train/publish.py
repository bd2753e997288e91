"""Copy the results of a finished run to where they are published. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from vitutor_core.errors import ResourceError

WEIGHTS_NAME = "student.safetensors"
EMA_WEIGHTS_NAME = "student_ema.safetensors"
METHOD_NAME = "method.safetensors"
INPUTS_NAME = "inputs.json"
"""What decided the result of a published run."""
PICTURES_NAME = "pictures"


def publish(run: Path, target: Path) -> None:
    """Copy a finished run's results to ``target`` and put them there by one rename; raises `ResourceError`."""
    partial = target.with_name(target.name + ".tmp")
    files = (WEIGHTS_NAME, EMA_WEIGHTS_NAME, METHOD_NAME, "metrics.json", "curves.csv", INPUTS_NAME)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in files:
            if (run / name).exists():
                shutil.copyfile(run / name, partial / name)
        if (run / PICTURES_NAME).is_dir():
            shutil.copytree(run / PICTURES_NAME, partial / PICTURES_NAME)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ResourceError(f"{target.absolute()}: cannot write ({error.strerror}); free some space") from None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
