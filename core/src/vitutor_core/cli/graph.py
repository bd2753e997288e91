"""vitutor graph, plan, ready: the DVC graph of a scale, its plan, and what cannot run here."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.errors import ConfigError
from vitutor_core.graph.params import Params, change_params

_PARAMS = click.option(
    "--params", type=options.PathOption(), default=Path("params.yaml"), show_default=True, help="What is run."
)


@click.command("graph")
@options.scale
@click.option("--folder", type=options.PathOption(exists=True, file_okay=False), default=Path())
@click.option("--check", is_flag=True, help="Write nothing; fail if the graph is not that of the recipes.")
def graph(scale: str, folder: Path, check: bool) -> None:
    """Write FOLDER/dvc.yaml and FOLDER/inputs.json from the recipes of the installed papers at a scale."""
    from vitutor_core.graph.dvc import texts_of, write_graph
    from vitutor_core.graph.stages import read_graph

    found = read_graph(scale)
    if not check:
        write_graph(folder, found)
    for path, text in ((folder / name, text) for name, text in texts_of(folder, found).items()):
        if not check:
            click.echo(f"written {path}")
        elif not path.exists() or path.read_text() != text:
            again = f"vitutor graph --scale {scale} --folder {folder}"
            raise ConfigError(f"{path}: not what the recipes say; run '{again}'")


@click.command("plan")
@_PARAMS
@click.option("--out", type=options.PathOption(file_okay=False), default=Path("results/plan"))
def plan(params: Path, out: Path) -> None:
    """Write what decides the result of each stage of the graph into OUT, a small file per stage.

    Stages depend on their file: what reruns is what changed.
    """
    from vitutor_core.graph.write import write_plan

    stages, run = write_plan(params, out)
    click.echo(f"plan of {stages} stages, {run} of them to be run")


@click.command("ready")
@click.argument("papers", nargs=-1)
@click.option("--choose", is_flag=True, help="Set `rows` in params.yaml to the chosen rows that can run.")
@_PARAMS
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
@_PARAMS
def params(changes: tuple[str, ...], params: Path) -> None:
    """Change fields of params.yaml, such as seeds=0,1,2 or rows="vit swin"; its comments stay."""
    for line in change_params(params, changes):
        click.echo(line)
