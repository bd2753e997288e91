"""Checkpoints that are whole or absent: safetensors, JSON, a SHA-256 manifest, one atomic rename.

``step-N/`` holds the tensor files, ``state.json`` and ``manifest.json``. It is written beside its place, flushed to
disk, and renamed, so a killed or failing writer never harms the checkpoints that are there. Only folders called
``step-`` and eight digits or more are checkpoints; whatever else lies there is somebody else's.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitutor_core.errors import CheckpointError, ResourceError
from vitutor_core.files import atomic, discard, file_sha256
from vitutor_core.models.weights import write_tensors

SCHEMA_VERSION = 2
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their manifest."""

    path: Path
    step: int
    identity: dict[str, Any]
    state: dict[str, Any]
    files: frozenset[str]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load one of the tensor files, on the CPU."""
        if f"{name}.safetensors" not in self.files:
            raise CheckpointError(f"{self.path}: its manifest does not list {name}.safetensors")
        try:
            return load_file(self.path / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path / name}.safetensors: {error}") from None


def save(
    root: Path, step: int, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any], identity: dict[str, Any]
) -> Path:
    """Write ``root/step-N``; ``tensors`` maps a file name to its tensors.

    Raises `ResourceError` if the disk is full or not writable; what was there stays untouched.
    """
    target = root / f"step-{step:08d}"
    try:
        with atomic(target) as partial:
            partial.mkdir()
            _write_payload(partial, tensors, state)
            _write_manifest(partial, step, identity)
    except ResourceError as error:
        needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        raise ResourceError(f"{error}, and the checkpoint needs {needed:,}") from None
    return target


def _write_payload(folder: Path, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    for name, group in tensors.items():
        write_tensors(folder / f"{name}.safetensors", group)
    (folder / "state.json").write_text(json.dumps(state))


def _write_manifest(folder: Path, step: int, identity: dict[str, Any]) -> None:
    files = {
        path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
    }
    manifest = {"schema_version": SCHEMA_VERSION, "step": step, "identity": identity, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def folders(root: Path) -> list[Path]:
    """Return the folders of checkpoints, damaged or not, by step."""
    found = [path for path in root.glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=_step)


def warn_if_short(root: Path, tensors: int) -> None:
    """Warn if the disk has no room for two checkpoints of ``tensors`` bytes: each is written beside the one before."""
    while not root.exists():
        root = root.parent
    free = shutil.disk_usage(root).free
    if free < 2 * tensors:
        warnings.warn(
            f"{root}: {free:,} bytes free, two checkpoints need {2 * tensors:,}; free some space", stacklevel=2
        )


def latest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where there is none.

    A damaged newer one is named in a warning. Raises `CheckpointError` if there are checkpoints but none is whole:
    starting over silently would throw work away.
    """
    found = folders(root)
    for folder in reversed(found):
        try:
            return read(folder)
        except CheckpointError as error:
            warnings.warn(f"{error}; using the one before", stacklevel=2)
    if found:
        raise CheckpointError(f"{root}: none of the {len(found)} checkpoints is whole; delete the folder to restart")
    return None


def latest_until(root: Path, step: int) -> Checkpoint | None:
    """Return the newest whole checkpoint of ``step`` or before; None where only the start leads there."""
    for folder in reversed(folders(root)):
        if _step(folder) <= step:
            with contextlib.suppress(CheckpointError):  # the one before leads to the step as well
                return read(folder)
    return None


def read(folder: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest and return it; raises `CheckpointError`, naming file and reason."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"{folder}: written by another version (schema {manifest['schema_version']})")
        if manifest["step"] != _step(folder):
            raise CheckpointError(f"{folder}: its manifest is of step {manifest['step']}")
        for name, expected in {"state.json": None, **manifest["files"]}.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path}: missing or truncated")
            if file_sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path}: content differs from its manifest (SHA-256)")
        state = json.loads((folder / "state.json").read_text())
        return Checkpoint(folder, manifest["step"], manifest["identity"], state, frozenset(manifest["files"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: no readable manifest ({type(error).__name__})") from None


def prune(root: Path, keep: Collection[int], *, newest: int = 2) -> None:
    """Delete all but the ``newest`` checkpoints and those of the steps in ``keep``."""
    for folder in folders(root)[:-newest]:
        if _step(folder) not in keep:
            discard(folder)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))
