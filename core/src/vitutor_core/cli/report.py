"""Turn results into the paper's tables and the report."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from vitutor_core.errors import ConfigError, DataError


@click.group("report")
def report() -> None:
    """Tables against the paper, plots, and one HTML page."""


@report.command("table")
@click.argument("paper")
@click.option("--results", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Table as JSON.")
def table(paper: str, results: Path, out: Path) -> None:
    """Put the results of PAPER beside the paper's numbers."""
    from vitutor_core.report.paper import load_paper_results
    from vitutor_core.report.results import load_results
    from vitutor_core.report.table import build_table
    from vitutor_core.train.run_folder import write_json

    built = build_table(load_paper_results(_paper_results(paper)), load_results(results, paper))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, built)


@report.command("html")
@click.argument("paper")
@click.option("--results", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--table", "table_file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def html(paper: str, results: Path, table_file: Path, out: Path) -> None:
    """Write the report of PAPER: one self-contained HTML page, and its figures as PNG."""
    from vitutor_core.report.analyses import analysis_pictures
    from vitutor_core.report.gallery import gallery_figure
    from vitutor_core.report.html import write_report
    from vitutor_core.report.paper import load_paper_results
    from vitutor_core.report.plots import draw_figures
    from vitutor_core.report.render import to_markdown
    from vitutor_core.report.results import load_results

    built = _read_table(table_file)
    rows = load_results(results, paper)
    out.mkdir(parents=True, exist_ok=True)
    printed = load_paper_results(_paper_results(paper))
    figures = draw_figures(printed, built, rows, out)
    gallery = gallery_figure(printed, results / paper, out)
    figures += [gallery] if gallery is not None else []
    figures += analysis_pictures(results / paper, out)
    write_report(built, rows, figures, out / "report.html")
    (out / "table.md").write_text(to_markdown(built))
    click.echo(f"report {out / 'report.html'}")


@report.command("show")
@click.argument("paper")
@click.option("--folder", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
def show(paper: str, folder: Path) -> None:
    """Print the table of PAPER and the path of its report, from a results FOLDER."""
    from rich.console import Console

    from vitutor_core.report.render import print_table

    console = Console()
    print_table(
        _read_table(folder / "tables" / f"{paper}.json"), console if console.is_terminal else Console(width=110)
    )
    click.echo(f"report: {(folder / 'reports' / paper / 'report.html').absolute()}")


@report.command("publish")
@click.argument("paper")
@click.option("--folder", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--to", "target", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--readme", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Replace its results block."
)
def publish(paper: str, folder: Path, target: Path, readme: Path | None) -> None:
    """Keep the table and figures of a results FOLDER in the repository."""
    from vitutor_core.report.publish import publish_results

    table = _read_table(folder / "tables" / f"{paper}.json")
    for path in publish_results(table, folder, target, readme):
        click.echo(str(path))


def _paper_results(paper: str) -> Path:
    try:
        return Path(str(files(paper))) / "paper_results.yaml"
    except ModuleNotFoundError:
        raise ConfigError(f"paper '{paper}' is not installed; pip install ./{paper}") from None


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        raise DataError(f"{path.absolute()}: no readable table; make it with 'vitutor report table'") from None
    return table
