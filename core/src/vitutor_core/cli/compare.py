"""vitutor compare: which method helps most with these images? Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.compare.papers import compare_papers
from vitutor_core.config import setting
from vitutor_core.terminal import command_line


@click.command("compare")
@options.any_scale
@options.source
@click.option("--student", metavar="NAME", help="Short for --set student.name=NAME, any vision transformer of timm's.")
@options.names("--papers", "Package names, separated by commas.  [default: all that are installed]")
@options.names("--methods", "Names of lines, separated by commas, as --estimate lists them.  [default: all]")
@options.names("--compose", "Compositions too: lines joined by +, as A+B, separated by commas; or all.")
@options.seeds
@options.settings
@click.option("--estimate", is_flag=True, help="Check every line, say what it costs, and train nothing.")
@options.folder("--publish", "Keep table, figures and records there, too.")
@options.out
def compare(
    out: Path, source: str | None, student: str | None, seeds: str, settings: tuple[str, ...], **which: Any
) -> None:
    """Train one common student by every installed method that can, and show what each adds and what it costs.

    Images, augmentation, optimiser and number of updates are the same for all; --set changes them for all, e.g.
    --source folder:my_images --set data.fraction=0.1. What a method needs besides (teachers, pre-training) comes from
    its own recipe and is counted. Beside them: the student alone, that for as much compute as the costliest method
    takes, the CNN alone, and plain distillation. Interrupted, the same command goes on; changed, it trains what
    changed.
    """
    from vitutor_core.report.leaderboard_text import print_board

    settings = options.with_source(settings, source)
    settings = (setting("student.name", student), *settings) if student is not None else settings
    numbers, command = options.seed_numbers(seeds), command_line("vitutor")
    board = compare_papers(out, seeds=numbers, settings=settings, command=command, **which)
    if not which["estimate"]:
        print_board(board)
        click.echo(f"report {out / 'compare.html'}")
