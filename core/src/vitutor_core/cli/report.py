"""Turn results into the paper's tables and the report."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import click

from vitutor_core.cli import options


@click.group("report")
def report() -> None:
    """Tables against the paper, plots, and one HTML page."""


@report.command("table")
@click.argument("paper")
@options.scale
@click.option("--results", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Table as JSON.")
def table(paper: str, scale: str, results: Path, out: Path) -> None:
    """Put the results of PAPER beside the paper's numbers."""
    from vitutor_core.report.results import load_results
    from vitutor_core.report.table import build_table, load_paper_results
    from vitutor_core.train.run_folder import write_json

    built = build_table(load_paper_results(Path(str(files(paper))) / "paper_results.yaml"), load_results(results, paper))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, built)


@report.command("html")
@click.argument("paper")
@click.option("--results", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--table", "table_file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def html(paper: str, results: Path, table_file: Path, out: Path) -> None:
    """Write the report of PAPER: one HTML page, and its figures as PNG."""
