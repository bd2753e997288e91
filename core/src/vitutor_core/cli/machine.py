"""What this machine can do: doctor, bench. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.bench import SHARES
from vitutor_core.cli import options


@click.command("doctor")
def doctor() -> None:
    """Check the environment: versions, device, compiler, data root, free disk."""
    from vitutor_core.jobs.doctor import check_environment

    check_environment()


@click.command("bench")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=8.0,
    show_default=True,
    help="About how long; more gives narrower spreads.",
)
@options.device
@click.option(
    "--scale",
    type=click.Choice(options.SCALES),
    help="Sizes of models and images.  [default: small; on a GPU cifar100]",
)
@options.number("--threads", "CPU threads of torch.", default=1)
@click.option("--only", multiple=True, type=click.Choice(tuple(SHARES)), help="Measure this part alone; repeatable.")
@options.folder("--out", "Folder for bench.json and bench.svg.", default=Path("bench"), show_default=True)
def bench(out: Path, **how: Any) -> None:
    """Measure this machine: our steps and loaders beside timm's, methods beside their plain students, teachers.

    Everything is a ratio of times that were taken in turn; what claims to compute the same is checked. Noise stands for
    images and teachers are untrained, so nothing has to be there.
    """
    from vitutor_core.bench.measure import measure_machine

    measure_machine(out, **how)
