"""Checkpoints that are whole or absent: safetensors, JSON, a SHA-256 manifest, one atomic rename.

``step-N/`` holds the tensor files, ``state.json`` and ``manifest.json``. It is written as ``step-N.tmp-<pid>/``,
flushed to disk, and renamed, so a killed or failing writer never harms the checkpoints that are there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitutor_core.errors import CheckpointError, ResourceError
from vitutor_core.train.publish import file_sha256

SCHEMA_VERSION = 1
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files match their manifest."""

    path: Path
    step: int
    identity: dict[str, Any]
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load one of the tensor files, on the CPU."""
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
    partial = root / f"{target.name}.tmp-{os.getpid()}"
    try:
        partial.mkdir(parents=True, exist_ok=True)
        _write_payload(partial, tensors, state)
        _write_manifest(partial, step, identity)
        _commit(partial, target)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        free = shutil.disk_usage(_existing(root)).free
        raise ResourceError(
            f"{target}: cannot save ({_first_line(error)}); needed {needed:,} bytes, {free:,} free"
        ) from None
    return target


def _write_payload(folder: Path, tensors: Mapping[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    for name, group in tensors.items():
        # safetensors refuses tensors that share storage, which tied weights do
        own = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in group.items()}
        save_file(own, folder / f"{name}.safetensors")
    (folder / "state.json").write_text(json.dumps(state))


def _write_manifest(folder: Path, step: int, identity: dict[str, Any]) -> None:
    files = {
        path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size} for path in sorted(folder.iterdir())
    }
    manifest = {"schema_version": SCHEMA_VERSION, "step": step, "identity": identity, "files": files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _commit(partial: Path, target: Path) -> None:
    for path in partial.iterdir():
        path.chmod(0o666 & ~_umask())  # safetensors leaves its files unreadable for the group
        _flush(path)
    _flush(partial)
    if target.exists():  # a damaged checkpoint of the same step, already replaced by this one
        shutil.rmtree(target)
    partial.rename(target)
    _flush(target.parent)


def latest(root: Path) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where there is none.

    A damaged newer one is named in a warning. Raises `CheckpointError` if there are checkpoints but none is whole:
    starting over silently would throw work away.
    """
    folders = sorted((path for path in root.glob("step-*") if ".tmp-" not in path.name), key=_step, reverse=True)
    for folder in folders:
        try:
            found = read(folder)
        except CheckpointError as error:
            warnings.warn(f"{error}; using the one before", stacklevel=2)
        else:
            return found
    if folders:
        raise CheckpointError(f"{root}: none of the {len(folders)} checkpoints is whole; delete the folder to restart")
    return None


def read(folder: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest and return it; raises `CheckpointError`, naming file and reason."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise CheckpointError(f"{folder}: written by another version (schema {manifest['schema_version']})")
        if manifest["step"] != _step(folder):
            raise CheckpointError(f"{folder}: its manifest is of step {manifest['step']}")
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path}: missing or truncated")
            if file_sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path}: content differs from its manifest (SHA-256)")
        state = json.loads((folder / "state.json").read_text())
        return Checkpoint(folder, manifest["step"], manifest["identity"], state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: no readable manifest ({type(error).__name__})") from None


def prune(root: Path, keep: Collection[int], *, newest: int = 2) -> None:
    """Delete all but the ``newest`` checkpoints and those of the steps in ``keep``."""
    folders = sorted((path for path in root.glob("step-*") if ".tmp-" not in path.name), key=_step)
    for folder in folders[:-newest]:
        if _step(folder) not in keep:
            shutil.rmtree(folder)


def remove_partial(root: Path) -> None:
    """Delete what a killed writer left behind."""
    for path in root.glob("step-*.tmp-*"):
        shutil.rmtree(path)


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    # Some file systems cannot sync folders; a file that cannot be synced is a failed save.
    tolerate = contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    try:
        with tolerate:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
