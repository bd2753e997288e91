"""Generate the shards of one set side by side on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitutor_core.cli.paper import Paper
from vitutor_core.cli.seeds import run_commands
from vitutor_core.train.progress import RunProgress

if TYPE_CHECKING:
    from dearkd.generation.generate import Generation


def generate_side_by_side(paper: Paper, generation: Generation, arguments: list[str], jobs: int) -> None:
    """Run ``arguments``, a command of ``paper``, once per shard, and show the iterations that are done."""
    commands = [[*arguments, "--shard", f"{number}/{jobs}"] for number in range(1, jobs + 1)]
    total, done = generation.config.num_batches * generation.config.iterations, generation.iterations_done()
    with RunProgress(f"generating {generation.config.num_images:,} images", total, done=done) as progress:
        run_commands(paper, commands, jobs, lambda: progress.update(generation.iterations_done(), "iterations"))
