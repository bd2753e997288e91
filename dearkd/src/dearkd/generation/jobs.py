"""Generate the shards of one set side by side on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dearkd import method as _method  # noqa: F401  # registers the students, of which the competitor may be one
from dearkd.generation.config import GenerationConfig
from dearkd.generation.generate import Generation
from vitutor_core.jobs.launch import Job, run_jobs
from vitutor_core.progress import RunProgress


def generate_side_by_side(generation: Generation, name: str, work: Path, jobs: int) -> None:
    """Generate what is missing in ``jobs`` processes, each with a GPU of its own where there are several."""
    config = generation.config
    shared = {"config": config.model_dump(mode="json"), "name": name, "work": str(work.absolute()), "of": jobs}
    work_of = [
        Job(f"{name}, shard {shard}/{jobs}", f"{__name__}:run_shard", {**shared, "shard": shard})
        for shard in range(1, jobs + 1)
    ]
    total, done = config.num_batches * config.iterations, generation.iterations_done()
    with RunProgress(f"generating {config.num_images:,} images", total, done=done, streams=jobs) as progress:
        run_jobs(
            work_of,
            jobs,
            preload=[__name__],
            tick=lambda: progress.update(generation.iterations_done(), "iterations"),
            device=config.runtime.device,
        )


def run_shard(config: dict[str, Any], name: str, work: str, shard: int, of: int) -> None:
    """Generate the missing batches of one shard; this is what a job's process does."""
    generation = Generation(GenerationConfig.from_mapping(config, where=name), name, Path(work))
    generation.run(generation.missing((shard, of)))
