"""Make a step of a run again and show it, by as many processes as trained the run. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitutor_core.baseline import paper_of
from vitutor_core.errors import InterruptedRun
from vitutor_core.jobs.launch import Job, run_jobs
from vitutor_core.paper import load
from vitutor_core.terminal import printable, say


def replay_run(run: Path, step: int, *, whole_epoch: bool, images: Path | None, settings: Sequence[str]) -> None:
    """Show a step of ``run``, by the processes that torchrun has started, else by as many as it takes."""
    from vitutor_core.train.origin import Origin

    arguments: dict[str, Any] = {
        "run": str(run.absolute()),
        "step": step,
        "whole_epoch": whole_epoch,
        "images": None if images is None else str(images.absolute()),
        "settings": list(settings),
    }
    count = Origin.read(run).processes
    if count == 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:  # some clusters set it to 1 everywhere
        replay_step(**arguments)
    else:
        job = Job("replay", f"{__name__}:replay_step", arguments)
        try:
            run_jobs([job], 1, preload=(), tick=lambda: None, processes=count)
        except InterruptedRun as error:  # of a training run it says that it was saved
            raise InterruptedRun("stopped", error.exit_code - 128) from None


def replay_step(run: str, step: int, whole_epoch: bool, images: str | None, settings: list[str]) -> None:
    """Make the step again in this process, with those that work together with it; the first one shows it."""
    from vitutor_core.report.replay import replay_lines, write_batch
    from vitutor_core.train.origin import Origin
    from vitutor_core.train.replay import replay

    origin = Origin.read(Path(run))
    paper = paper_of(origin.package)
    config = load(paper.config).from_mapping(origin.config, where=run).changed(settings)
    seen = replay(origin, config, load(paper.method).build, step, whole_epoch=whole_epoch)
    if os.environ.get("RANK", "0") != "0":
        return
    for line in replay_lines(seen, step):
        say(printable(line))
    for path in [] if images is None else write_batch(seen, Path(images)):
        say(path)
