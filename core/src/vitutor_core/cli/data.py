"""Check a data source before anything is trained on it."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.config import setting
from vitutor_core.files import write_json
from vitutor_core.graph.planned import read_planned
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.schema import DataConfig


@click.command("data")
@options.scale
@click.option("--source", help="A data source, instead of the scale's: digits, cifar100, folder:PATH, ...")
@options.settings
@options.stage_plan
@options.file("--out", "Write the manifest there as JSON.")
@options.folder("--coco", "Write scenes there in COCO's layout.")
def data(
    scale: str,
    source: str | None,
    settings: tuple[str, ...],
    plan: Path | None,
    out: Path | None,
    coco: Path | None,
) -> None:
    """Read and check every image of a data source; print what was found.

    Counts are listed; images that cannot be read, or that both splits have, are named. --set changes fields of the
    data section, e.g. --set fraction=0.1.
    """
    if plan is not None:
        planned = read_planned(plan)
        source = planned["source"]
        if not planned["run"] and out is not None:
            write_json(out, {"name": source, "skipped": planned["why"]})
            click.echo(f"{source}: not checked, {planned['why']}")
            return
    base = read_recipe(recipe_path("vitutor_core", scale)).base
    config = DataConfig.from_mapping(base["data"], where=f"{scale}.yaml")
    config = config.changed((*(() if source is None else (setting("source", source),)), *settings))

    from vitutor_core.jobs.data import check_data

    check_data(config, out, coco)
