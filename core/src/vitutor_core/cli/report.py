"""Turn results into the paper's tables and the report."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from vitutor_core.cli import options
from vitutor_core.errors import DataError
from vitutor_core.files import write_json, write_text
from vitutor_core.paper import installed_paper

_SEAL = "sha256"


@click.group("report")
def report() -> None:
    """Tables against the paper, plots, and one HTML page."""


@report.command("table")
@click.argument("paper")
@options.results
def table(paper: str, results: Path) -> None:
    """Put the evaluated rows of PAPER beside the paper's numbers.

    Writes RESULTS/tables/PAPER.json and, for `dvc metrics` and `dvc plots`, a file of each row in metrics/ and curves/.
    """
    from vitutor_core.report.metrics import write_metrics
    from vitutor_core.report.paper import load_paper_results
    from vitutor_core.report.results import load_results
    from vitutor_core.report.table import build_table

    printed = load_paper_results(_paper_results(paper))
    folder = results / "evaluation"
    is_empty = (folder / paper).is_dir() and not any((folder / paper).glob("*/seed-*"))
    rows = {} if is_empty else load_results(folder, paper)
    built = build_table(printed, rows) if rows else {"paper": paper, "skipped": "no row of it was run"}
    write_json(results / "tables" / f"{paper}.json", {**built, _SEAL: _seal(built)})
    write_metrics(rows, results / "metrics" / paper, results / "curves" / paper)


@report.command("html")
@click.argument("paper")
@options.results
def html(paper: str, results: Path) -> None:
    """Write RESULTS/reports/PAPER: one self-contained HTML page, and its figures."""
    from vitutor_core.report.analyses import analysis_pictures
    from vitutor_core.report.gallery import gallery_figure
    from vitutor_core.report.html import write_report
    from vitutor_core.report.paper import load_paper_results
    from vitutor_core.report.plots import draw_figures
    from vitutor_core.report.render import to_markdown
    from vitutor_core.report.results import load_results

    out = results / "reports" / paper
    out.mkdir(parents=True, exist_ok=True)
    built = _read_table(results, paper)
    if "skipped" in built:
        click.echo(f"{paper}: no report, {built['skipped']}")
        return
    rows = load_results(results / "evaluation", paper)
    printed = load_paper_results(_paper_results(paper))
    figures = draw_figures(printed, built, rows, out)
    gallery = gallery_figure(printed, results, out)
    figures += [gallery] if gallery is not None else []
    figures += analysis_pictures(results / "analyses" / paper, out)
    write_report(built, rows, figures, out / "report.html")
    write_text(out / "table.md", to_markdown(built))
    click.echo(f"report {out / 'report.html'}")


@report.command("show")
@click.argument("paper")
@options.results
def show(paper: str, results: Path) -> None:
    """Print the table of PAPER and the path of its report, from RESULTS."""
    from rich.console import Console

    from vitutor_core.report.render import print_table

    console = Console()
    table = _read_table(results, paper)
    if "skipped" in table:
        click.echo(f"{paper}: no table, {table['skipped']}")
        return
    print_table(table, console if console.is_terminal else Console(width=110))
    click.echo(f"report: {(results / 'reports' / paper / 'report.html').absolute()}")


@report.command("publish")
@click.argument("paper")
@options.results
@click.option("--to", "target", required=True, type=options.PathOption(file_okay=False))
@click.option("--readme", type=options.PathOption(exists=True, dir_okay=False), help="Replace its results block.")
def publish(paper: str, results: Path, target: Path, readme: Path | None) -> None:
    """Keep the table and figures of RESULTS in the repository."""
    from vitutor_core.report.publish import publish_results

    table = _read_table(results, paper)
    for path in publish_results(table, results, target, readme):
        click.echo(str(path))


def _paper_results(paper: str) -> Path:
    return Path(str(files(installed_paper(paper).package))) / "paper_results.yaml"


def _read_table(results: Path, paper: str) -> dict[str, Any]:
    """Read a table; one that was changed after it was written could be anything, so its seal must fit."""
    path = results / "tables" / f"{paper}.json"
    try:
        table: dict[str, Any] = json.loads(path.read_text())
        intact = table.pop(_SEAL) == _seal(table) and table["paper"] == paper
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise DataError(f"{path.absolute()}: no readable table; make it with 'vitutor report table {paper}'")
    return table


def _seal(table: dict[str, Any]) -> str:
    written = json.loads(json.dumps(table))  # keys are text there
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
