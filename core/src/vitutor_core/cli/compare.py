"""Several papers' methods on one budget: which helps most with these images? Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import click

from vitutor_core.cli import options
from vitutor_core.cli.calls import Settings, texts
from vitutor_core.cli.reproduce import Folders, Row, reproduce_row
from vitutor_core.cli.sizes import show_sizes
from vitutor_core.cli.teacher import recipe_teachers, teacher_config
from vitutor_core.config import nearest, parse_yaml, setting
from vitutor_core.errors import ConfigError, named
from vitutor_core.files import write_json
from vitutor_core.graph.needs import teachers_of
from vitutor_core.paper import Paper, installed_papers
from vitutor_core.recipe import OWN, Compared, read_recipe, recipe_path


@click.command("compare")
@options.any_scale
@options.source
@click.option("--papers", help="Package names, separated by commas.  [default: all that are installed]")
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds, separated by commas.")
@options.settings
@options.out()
def compare(
    scale: str, source: str | None, papers: str | None, seeds: str, settings: tuple[str, ...], out: Path
) -> None:
    """Train each paper's method and its plain student on one budget, and show what each method adds.

    Images, augmentation, optimiser and number of updates are the same for all; --set changes them for all, e.g.
    --source folder:my_images --set data.fraction=0.1. What a method needs besides (teachers, pre-training)
    comes from its own recipe and is listed. Interrupted, the same command goes on; changed, it trains what changed.
    """
    names = papers.split(",") if papers is not None else None
    numbers, settings = options.seed_numbers(seeds), options.with_source(settings, source)
    _show(compare_papers(out, scale=scale, papers=names, seeds=numbers, settings=settings))
    click.echo(f"written {out / 'compare.json'}")


def compare_papers(
    out: Path | str,
    *,
    scale: str = "digits",
    papers: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Settings = (),
) -> list[dict[str, Any]]:
    """Train each paper's method and its plain student on one budget; return what each adds, the largest gain first.

    ``papers`` are names of packages, all that are installed by default; ``settings`` change the budget for all. The
    same is written to ``out/compare.json``.
    """
    from vitutor_core.cli.evaluate import evaluate_row

    out, settings, numbers, budget = Path(out), texts(settings), tuple(seeds), _budget(scale)
    chosen = [(paper, _compared(paper, scale)) for paper in _choose(papers)]
    rows = []
    for paper, compared in chosen:
        for name in compared.rows:
            shared = {"data": budget["data"]} if name in compared.methods[:-1] else budget
            changes = (*(setting(field, value) for field, value in shared.items()), *settings)
            rows.append(Row(paper, name, scale, settings=changes))
    for row in rows:
        with named(_title(row)):
            check_row(row, numbers)
    if scale == OWN:
        taught = rows[-1].config(numbers[0])
        show_sizes(taught, recipe_teachers(taught, scale))
    folders = Folders(out, out / "work")
    for row in rows:
        with named(_title(row)):
            reproduce_row(row, numbers, folders)
            runs, evaluation = folders.runs(row.paper, row.name), out / "evaluation" / row.paper.package / row.name
            evaluate_row(row.paper, runs, evaluation, None, speed=False)
    lines = _judged([_line(paper, compared, out / "evaluation") for paper, compared in chosen])
    write_json(out / "compare.json", {"lines": lines})
    return lines


def _title(row: Row) -> str:
    return f"{row.paper.command}, row {row.name}"


def check_row(row: Row, seeds: tuple[int, ...]) -> None:
    """Check the configs of a row, and its first step, with untrained models in place of what comes before it."""
    from vitutor_core.cli.preflight import check_run

    config = row.config(seeds[0])
    before = {}
    for path, teacher in teachers_of(config):
        if teacher.weights is None and teacher.recipe is not None:
            before[path] = teacher_config(config, row.scale, teacher.recipe)
        elif teacher.weights is None and teacher.row is not None:
            before[path] = replace(row, name=teacher.row).config(0)
    check_run(config.changed(["student.start_row=null"]), row.paper.method, before)


def _choose(names: Sequence[str] | None) -> list[Paper]:
    """Return the papers that are asked for, or all that are installed; raises `ConfigError` where there is none."""
    installed = installed_papers()
    wanted = sorted(installed) if names is None else names
    for name in wanted:
        if name not in installed:
            hint = nearest(name, installed) or f"; pip install ./{name}"
            raise ConfigError(f"--papers: '{name}' is not installed{hint}")
    if not wanted:
        raise ConfigError("no paper is installed; install the package of one")
    return [installed[name] for name in wanted]


def _compared(paper: Paper, scale: str) -> Compared:
    found = read_recipe(recipe_path(paper.package, scale)).compare
    if found is None:
        raise ConfigError(f"--papers: the recipe of {paper.package} at '{scale}' has no key 'compare'; leave it out")
    return found


def _budget(scale: str) -> dict[str, Any]:
    path = recipe_path("vitutor_core", f"budget/{scale}")
    budget: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"), where=path.name)
    return budget


def _line(paper: Paper, compared: Compared, results: Path) -> dict[str, Any]:
    """Summarise what a method adds to its plain student, and what that costs in training time."""
    from vitutor_core.report.results import load_results
    from vitutor_core.report.verdict import Sample, difference, summarise

    rows = load_results(results, paper.package)
    method_row = compared.methods[-1]
    plain, method = Sample(rows[compared.plain], "top1"), Sample(rows[method_row], "top1")

    def seconds(*names: str) -> float:
        return sum(run.result.seconds for name in names for run in rows[name]) / len(rows[names[-1]])

    first = rows[method_row][0].result
    return {
        "paper": paper.package,
        "student": first.config["student"]["name"],
        "teachers": {role: teacher.name for role, teacher in first.teachers.items()},
        "plain": summarise(plain),
        "method": summarise(method),
        "gain": difference(method, plain),
        "source": first.config["data"]["source"],
        "updates": first.updates,
        "train_images": first.train_images,
        "pretraining_updates": sum(rows[name][0].result.updates for name in compared.methods[:-1]),
        "cost": seconds(*compared.methods) / seconds(compared.plain),
    }


def _judged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines, the largest gain first, with verdicts where the images allow them."""
    from vitutor_core.report.verdict import SMOKE_TEST, judge

    lines = sorted(lines, key=lambda line: -line["gain"]["mean"])
    if all(line["source"] == SMOKE_TEST for line in lines):
        return lines
    verdicts = judge([(None, line["gain"]) for line in lines])
    return [line | verdict for line, verdict in zip(lines, verdicts, strict=True)]


def _show(lines: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from vitutor_core.report.render import gap, measured, number

    table = Table(box=None, pad_edge=False, header_style="dim")
    headings = ("method", "plain student", "with it", "gain", "verdict", "could see", "updates", "before", "time")
    for heading in (*headings, "teachers"):
        justify: Literal["left", "right"] = "left" if heading in {"method", "verdict", "teachers"} else "right"
        table.add_column(heading, justify=justify, no_wrap=heading == "method", overflow="fold")
    for line in lines:
        table.add_row(
            line["paper"],
            measured(line["plain"]),
            measured(line["method"]),
            gap(line["gain"]),
            line.get("verdict", "smoke test"),
            number(line.get("smallest")),
            f"{line['updates']:,}",
            f"{line['pretraining_updates']:,}",
            f"{line['cost']:.1f}x",
            "\n".join(f"{role}: {name}" for role, name in line["teachers"].items()),
        )
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    click.echo("top-1 in %, mean +- sd over seeds; gain +- standard error; verdicts as in the reports;")
    click.echo("could see: the smallest gain with 80 % chance of a verdict; before: updates of pre-training;")
    click.echo("time: of the method's runs over that of the plain student's, teachers not counted")
