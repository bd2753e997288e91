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
from vitutor_core.terminal import printable


@click.command("data")
@options.scale
@click.option("--source", help="A data source, instead of the scale's: digits, cifar100, folder:PATH, ...")
@options.settings
@options.stage_plan
@click.option("--out", type=options.PathOption(dir_okay=False), help="Write the manifest there as JSON.")
@click.option("--coco", type=options.PathOption(file_okay=False), help="Write scenes there in COCO's layout.")
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

    from vitutor_core.data.check import check_source
    from vitutor_core.data.detection.coco import write_coco
    from vitutor_core.data.detection.open import open_annotated
    from vitutor_core.train.progress import RunProgress

    annotated = None if coco is None else open_annotated(config.source)
    with RunProgress(f"checking {config.source}", 1) as progress:
        manifest = check_source(config, progress=progress.of)
    for name in ("train", "evaluation"):
        split = manifest[name]
        click.echo(
            f"{name:12}{split['images']:>9} images, {split['per_class']['min']}-{split['per_class']['max']} per class"
        )
    click.echo(f"{'classes':12}{len(manifest['classes']):>9}; fingerprint {manifest['fingerprint'][:16]}")
    if manifest["evaluated_on"] is not None:
        click.echo(printable(f"{'evaluated on':12} '{manifest['evaluated_on']}'"))
    for note in manifest["notes"]:
        click.echo(printable(f"{'note':12}{note}"))
    if out is not None:
        write_json(out, manifest)
        click.echo(f"manifest    {out}")
    if coco is not None and annotated is not None:
        write_coco(annotated, coco)
        click.echo(f"coco:{coco}")
