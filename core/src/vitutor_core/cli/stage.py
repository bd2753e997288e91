"""What the commands of stages share: a stage that its plan leaves out makes its outputs and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.graph.planned import leave_out, read_planned, take_up


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
    click.echo(f"{said}, {planned['why']}")
    return True
