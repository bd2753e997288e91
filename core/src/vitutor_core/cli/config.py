"""Print a resolved config, explain its fields, or write it as a recipe. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.explain import commented, explained
from vitutor_core.files import write_text
from vitutor_core.jobs.train import Asked
from vitutor_core.paper import Paper
from vitutor_core.recipe import recipe_path
from vitutor_core.terminal import printable


def config_command(paper: Paper) -> click.Command:
    """Return the command of a paper."""

    @click.command("config")
    @options.asked(paper)
    @click.option(
        "--explain",
        metavar="[FIELD]",
        is_flag=False,
        flag_value="",
        help="Print every field, or those below FIELD: text, type, bounds, default, and where the value comes from.",
    )
    @options.file("--out", "Write a recipe with the fields' texts, for --recipe.")
    def config(asked: Asked, explain: str | None, out: Path | None) -> None:
        """Print the resolved config as JSON, and its fingerprint."""
        scale, recipe, resolved = asked.scale, asked.recipe, asked.config()
        if out is not None:
            command = f"{paper.command} train --scale {scale} --recipe {out} --out RUN"
            write_text(out, commented(resolved, command))
            click.echo(f"written {out}; {command}")
        if explain is not None:
            path = recipe_path(paper.package, scale, recipe)
            for line in explained(
                resolved, path, preset=asked.preset, row=asked.row, settings=asked.settings, below=explain
            ):
                click.echo(printable(line))
        elif out is None:
            click.echo(resolved.model_dump_json(indent=2))
            click.echo(f"fingerprint {resolved.fingerprint()}", err=True)

    return config
