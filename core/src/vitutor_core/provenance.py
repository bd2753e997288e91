"""What a result must say of its origin: code version, packages, machine. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_NOT_CODE = (":(top,exclude,glob)**/dvc.lock", ":(top,exclude,glob)**/params.yaml")


def here(paper: str | None = None) -> dict[str, Any]:
    """Return what makes a result here and now: ``git``, ``versions`` and ``machine``."""
    return {"git": git_state(), "versions": versions(paper), "machine": machine()}


def git_state() -> dict[str, Any]:
    """Return the commit of the checkout this code runs from and whether it was changed; nulls outside one."""
    folder = Path(__file__).parent
    # Installed packages may lie inside somebody else's checkout: ask for this very file.
    if _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {"commit": None, "dirty": None}
    # What is run is in each record, and DVC writes its lock after each stage: neither is a change of the code.
    changed = _git(folder, "status", "--porcelain", "-uno", "--", ":/", *_NOT_CODE)
    return {"commit": _git(folder, "rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(paper: str | None = None) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result; ``paper`` may be several joined by +."""
    names = ["torch", "torchvision", "timm", "numpy", "pillow", "vitutor-core"]
    if paper is not None:
        names += [f"vitutor-{package.replace('_', '-')}" for package in paper.split("+")]
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return processor, cores and, if torch is loaded and sees one, the GPU."""
    import sys

    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()}


def usable_cores() -> int:
    """Return how many cores this process may use, which a cluster's job sets below those of the machine."""
    ask = getattr(os, "sched_getaffinity", None)  # not on macOS
    return len(ask(0)) if ask is not None else os.cpu_count() or 1


def usable_gpus(device: str = "auto") -> list[str]:
    """Return the NVIDIA GPUs that a ``runtime.device`` may mean here, by their names in CUDA_VISIBLE_DEVICES."""
    if device == "cpu" or version("torch").endswith("+cpu"):
        return []
    found = len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = list(map(str, range(found))) if chosen is None else chosen.replace(" ", "").split(",")
    usable = [name for name in names if name not in ("", "-1")] if found else []
    number = device.partition(":")[2]
    return usable[int(number) :][:1] if number.isdecimal() else usable


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
