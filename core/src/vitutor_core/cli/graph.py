"""The DVC graph of a scale, its plan, and what cannot run here: graph, plan, ready, params, data."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.config import setting
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_json
from vitutor_core.graph.params import Params, change_params
from vitutor_core.graph.planned import read_planned
from vitutor_core.recipe import read_recipe, recipe_path
from vitutor_core.schema import DataConfig
from vitutor_core.sizing import with_holdout

_params = click.option(
    "--params", type=options.PathOption(), default=Path("params.yaml"), show_default=True, help="What is run."
)


@click.command("graph")
@options.scale
@options.folder("--folder", "Write there.  [default: the current folder]", exists=True, default=Path())
@click.option("--check", is_flag=True, help="Write nothing; fail if the graph is not that of the recipes.")
def graph(scale: str, folder: Path, check: bool) -> None:
    """Write FOLDER/dvc.yaml and FOLDER/inputs.json from the recipes of the installed papers at a scale."""
    from vitutor_core.graph.dvc import check_graph, write_graph
    from vitutor_core.graph.stages import read_graph

    found = read_graph(scale)
    if check:
        check_graph(folder, found)
        return
    for path in write_graph(folder, found):
        click.echo(f"written {path}")


@click.command("plan")
@_params
@options.folder("--out", "Write there.", default=Path("results/plan"), show_default=True)
def plan(params: Path, out: Path) -> None:
    """Write what decides the result of each stage of the graph into OUT, a small file per stage.

    Stages depend on their file: what reruns is what changed.
    """
    from vitutor_core.graph.plan import write_plan

    stages, run = write_plan(params, out)
    click.echo(f"plan of {stages} stages, {run} of them to be run")


@click.command("ready")
@click.argument("papers", nargs=-1)
@click.option("--choose", is_flag=True, help="Set `rows` in params.yaml to the chosen rows that can run.")
@_params
def ready(papers: tuple[str, ...], choose: bool, params: Path) -> None:
    """Say which of the chosen rows of PAPERS (default: all installed) cannot run here, and why."""
    from vitutor_core.graph.ready import sort_rows

    left, missing = sort_rows(papers, Params.read(params))
    for stage, reason in missing.items():
        click.echo(f"{stage}: {reason}", err=True)
    if not missing:
        click.echo("all chosen rows can run")
    elif choose and left:
        change_params(params, (f"rows={','.join(left)}",))
        click.echo(f"{params}: rows are now the {len(left)} that can run; {len(missing)} are left out")
    else:
        raise ConfigError(
            f"{len(missing)} chosen rows cannot run here; provide what they need, or leave them out: "
            f"'vitutor ready {' '.join(papers)} --choose --params {params}' does, and so do `groups` and `rows` there"
        )


@click.command("params")
@click.argument("changes", nargs=-1, metavar="FIELD=VALUE...")
@_params
def params(changes: tuple[str, ...], params: Path) -> None:
    """Change fields of params.yaml, such as seeds=0,1,2 or rows="vit swin"; its comments stay."""
    for line in change_params(params, changes):
        click.echo(line)


@click.command("data")
@options.scale
@click.option("--source", help="A data source, instead of the scale's: digits, cifar100, folder:PATH, ...")
@options.settings_like("data.fraction=0.1")
@options.stage_plan
@options.file("--out", "Write the manifest there as JSON.")
@options.folder("--coco", "Write scenes there in COCO's layout.")
def data(
    scale: str, source: str | None, settings: tuple[str, ...], plan: Path | None, out: Path | None, coco: Path | None
) -> None:
    """Read and check every image of a data source; print what was found.

    Counts are listed; images that cannot be read, or that both splits have, are named. A folder with nothing to
    evaluate on has images held out, as at --scale own. --set changes fields of data, whose name may be left out.
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
    own = () if source is None else (setting("source", source),)
    config = with_holdout(config.changed((*own, *(given.removeprefix("data.") for given in settings))))

    from vitutor_core.jobs.data import check_data

    check_data(config, out, coco)
