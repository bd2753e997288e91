"""One student, one budget: which method helps most with these images? Imports nothing heavy itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.cli.calls import Settings, texts
from vitutor_core.cli.compared import LONG, Contest, Entry
from vitutor_core.cli.sizes import show_sizes
from vitutor_core.config import nearest, setting
from vitutor_core.errors import ConfigError
from vitutor_core.paper import Paper, installed_papers
from vitutor_core.recipe import OWN


@click.command("compare")
@options.any_scale
@options.source
@click.option("--student", metavar="NAME", help="Short for --set student.name=NAME, any vision transformer of timm's.")
@click.option("--papers", help="Package names, separated by commas.  [default: all that are installed]")
@click.option("--methods", help="Names of lines, separated by commas, as --estimate lists them.  [default: all]")
@click.option("--compose", help="Compositions too: lines joined by +, as A+B, separated by commas; or all.")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, separated by commas.")
@options.settings
@click.option("--estimate", is_flag=True, help="Check every line, say what it costs, and train nothing.")
@click.option("--publish", type=options.PathOption(file_okay=False), help="Keep table, figures and records there, too.")
@options.out()
def compare(
    scale: str,
    source: str | None,
    student: str | None,
    papers: str | None,
    methods: str | None,
    compose: str | None,
    seeds: str,
    settings: tuple[str, ...],
    estimate: bool,
    publish: Path | None,
    out: Path,
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
    names = [None if given is None else given.split(",") for given in (papers, methods, compose)]
    given: dict[str, Any] = dict(zip(("papers", "methods", "compose"), names, strict=True))
    board = compare_papers(
        out,
        scale=scale,
        seeds=options.seed_numbers(seeds),
        settings=settings,
        estimate=estimate,
        publish=publish,
        command=options.command_line("vitutor"),
        **given,
    )
    if not estimate:
        print_board(board)
        click.echo(f"report {out / 'compare.html'}")


def compare_papers(
    out: Path | str,
    *,
    scale: str = "digits",
    papers: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    compose: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Settings = (),
    estimate: bool = False,
    publish: Path | None = None,
    command: str = "vitutor_core.api.compare",
) -> dict[str, Any]:
    """Train one common student by every method of the papers that can; return the table of `report.leaderboard`.

    ``papers`` are names of packages, all that are installed by default; ``methods`` are lines, all by default;
    ``compose`` are lines joined by ``+``, or ``all``; ``settings`` change the budget and the student for all. The table
    is written to ``out`` as compare.json, compare.md and compare.html after each line. With ``estimate`` nothing is
    trained, and the table has no lines.
    """
    from vitutor_core.cli.contest import run_contest, say_prices
    from vitutor_core.cli.price import Prices

    contest = Contest(scale, _choose(papers), texts(settings), command)
    entries = _entries(contest, methods, compose)
    prices = Prices(contest)
    if scale == OWN:
        show_sizes(contest.budget, {name: of for entry in entries for name, of in prices.teachers(entry).items()})
    for entry in entries:
        prices.check(entry)
    if methods is None or LONG in methods:
        entries.append(longer(contest, prices, entries[0]))
        prices.check(entries[-1])
    say_prices(contest, prices, entries, tuple(seeds))
    return {} if estimate else run_contest(contest, prices, entries, tuple(seeds), Path(out), publish)


def longer(contest: Contest, prices: Any, alone: Entry) -> Entry:
    """Return the student alone for as many epochs as the total compute of the costliest line of one method allows.

    That is of all lines that the papers have, whatever lines are chosen, so that a table can be made in parts.
    """
    lines = [entry for entry in contest.entries() if entry.is_common]
    for entry in lines:
        prices.check(entry)
    epochs = contest.budget.train.epochs
    costliest = max(prices.total(entry) for entry in lines)
    return contest.longer(alone, math.ceil(epochs * costliest / prices.total(alone)))


def _entries(contest: Contest, methods: Sequence[str] | None, compose: Sequence[str] | None) -> list[Entry]:
    """Return the lines that are asked for, the parts of compositions among them."""
    composed = contest.compositions() if compose is not None and list(compose) == ["all"] else list(compose or ())
    if alone := [name for name in composed if "+" not in name]:
        raise ConfigError(f"--compose {','.join(alone)}: join lines by +, as A+B; --methods chooses single lines")
    parts: Iterable[str] = (part for name in composed for part in name.split("+"))
    lines = contest.entries(None if methods is None else [*methods, *parts])
    found = [*lines, *map(contest.entry, composed)]
    return list({entry.name: entry for entry in found}.values())


def _choose(names: Sequence[str] | None) -> dict[str, Paper]:
    """Return the papers that are asked for, or all that are installed; raises `ConfigError` for one that is not."""
    installed = installed_papers()
    wanted = sorted(installed) if names is None else list(names)
    for name in wanted:
        if name not in installed:
            hint = nearest(name, installed) or f"; pip install ./{name}"
            raise ConfigError(f"--papers: '{name}' is not installed{hint}")
    return {name: installed[name] for name in wanted}
