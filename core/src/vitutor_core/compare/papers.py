"""One student, one budget: which method helps most with these images? Imports nothing heavy itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitutor_core.compare.contest import LONG, Contest, Entry
from vitutor_core.config import nearest
from vitutor_core.errors import ConfigError
from vitutor_core.jobs.sizes import show_sizes
from vitutor_core.jobs.train import Settings, texts
from vitutor_core.paper import Paper, installed_papers
from vitutor_core.progress import is_silent
from vitutor_core.recipe import OWN
from vitutor_core.terminal import say


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
    from vitutor_core.compare.price import Prices
    from vitutor_core.compare.running import run_contest, say_prices

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
    say_prices(contest, prices, entries, tuple(seeds), Path(out))
    if publish is not None:
        _say_what_goes(publish / f"{scale}.json", entries)
    return {} if estimate else run_contest(contest, prices, entries, tuple(seeds), Path(out), publish)


def _say_what_goes(published: Path, entries: Sequence[Entry]) -> None:
    """Say which lines of a table that was published will not be there any more, and how to keep them."""
    if is_silent() or not published.is_file():
        return
    kept = {entry.name for entry in entries}
    gone = [line["name"] for line in json.loads(published.read_text())["lines"] if line["name"] not in kept]
    if gone:
        named = "name them in --compose or --methods to keep them"
        say(f"{published}: will be without {', '.join(gone)}, which are not asked for; {named}", err=True)


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
