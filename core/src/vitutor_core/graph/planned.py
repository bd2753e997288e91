"""Read what a plan says of one stage, and leave the stage out where it says so. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vitutor_core.errors import ConfigError
from vitutor_core.files import write_text
from vitutor_core.terminal import say

_NOTE = "not-run.txt"


@dataclass(frozen=True)
class PlannedRow:
    """What is run of a row; ``why`` says why it is not."""

    run: bool
    why: str
    scale: str
    preset: str | None
    settings: tuple[str, ...]
    seeds: tuple[int, ...]
    processes: int

    @classmethod
    def read(cls, plan: Path, package: str, row: str) -> Self:
        """Read a row's file of a plan; raises `ConfigError`."""
        found = read_planned(plan / package / f"{row}.json")
        shared = read_planned(plan / "runtime.json")
        return cls(
            run=found["run"],
            why=found.get("why", ""),
            scale=found.get("scale", ""),
            preset=found.get("preset"),
            settings=tuple(found.get("set", ())),
            seeds=tuple(found.get("seeds", ())),
            processes=shared["processes"],
        )


def place_in_plan(plan: Path, package: str, row: str, published: Path) -> str:
    """Say which of a paper's rows in a plan this is: the one after those whose seeds are in ``published``."""
    others = {path.stem: read_planned(path) for path in (plan / package).glob("*.json") if path.stem != row}
    chosen = {name: found for name, found in others.items() if found["run"]}
    done = [
        name
        for name, found in chosen.items()
        if all((published / name / f"seed-{seed}" / "metrics.json").exists() for seed in found["seeds"])
    ]
    return f"row {len(done) + 1} of {len(chosen) + 1}, {row}"


def read_planned(path: Path) -> dict[str, Any]:
    """Read one file of a plan; raises `ConfigError`."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise ConfigError(f"{path}: not a file of a plan; make one with 'vitutor plan'") from None
    return content


def leave_out(folder: Path, why: str) -> None:
    """Make the output of a stage that is not run: a folder with a note, since DVC warns of empty ones."""
    write_text(folder / _NOTE, f"not run: {why}\n")


def take_up(folder: Path) -> None:
    """Remove the note of `leave_out` from a folder that a stage is about to fill."""
    (folder / _NOTE).unlink(missing_ok=True)


def left_out(plan: Path | None, said: str, *outs: Path) -> bool:
    """Return whether the stage of a ``plan`` file is left out, after making ``outs`` and saying so.

    Without a plan, or where the stage is run, ``outs`` may be filled.
    """
    planned: dict[str, Any] = {"run": True} if plan is None else read_planned(plan)
    if planned["run"]:
        for out in outs:
            take_up(out)
        return False
    for out in outs:
        leave_out(out, planned["why"])
    say(f"{said}, {planned['why']}")
    return True
