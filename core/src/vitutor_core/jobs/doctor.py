"""Say what this environment can do, and what is wrong with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from vitutor_core.errors import ConfigError
from vitutor_core.provenance import git_state, machine, versions
from vitutor_core.terminal import say

_MINIMUM_TORCH = (2, 10)


def check_environment() -> None:
    """Print versions, device, compiler, data root and free disk; raises `ConfigError` for what cannot work."""
    try:
        import torchvision  # noqa: F401  # fails where it does not match torch
    except (ImportError, RuntimeError) as error:
        raise ConfigError(f"torchvision does not match torch {torch.__version__} ({error}); reinstall both") from None
    found = machine()
    root = os.environ.get("VITUTOR_DATA_ROOT")
    lines = {
        "versions": ", ".join(f"{name} {value}" for name, value in versions().items()),
        "device": found["gpu"] or f"CPU, {found['cores']} cores ({found['processor']})",
        "bf16": "yes" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no GPU: keep fp32",
        "torch.compile": "yes" if shutil.which("g++") or torch.cuda.is_available() else "no C++ compiler found",
        "data root": root or "not set (VITUTOR_DATA_ROOT); ./data is used",
        "free disk": f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB here",
        "commit": git_state()["commit"] or "not a checkout",
    }
    for name, value in lines.items():
        say(f"{name:14}{value}")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _MINIMUM_TORCH:
        raise ConfigError(f"torch {torch.__version__} has known holes in loading files; install 2.10 or newer")
    if root is not None and not Path(root).is_dir():
        raise ConfigError(f"VITUTOR_DATA_ROOT: {Path(root).absolute()} is not a directory")
