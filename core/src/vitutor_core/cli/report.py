"""Turn results into the paper's tables and the report, and schemas into a page: report, fields."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.files import write_text

_paper = click.argument("paper")


@click.group("report")
def report() -> None:
    """Tables against the paper, plots, and one HTML page."""


@report.command("table")
@_paper
@options.results
def table(paper: str, results: Path) -> None:
    """Put the evaluated rows of PAPER beside the paper's numbers.

    Writes RESULTS/tables/PAPER.json and, for `dvc metrics` and `dvc plots`, a file of each row in metrics/ and curves/.
    """
    from vitutor_core.report.stages import write_table

    write_table(paper, results)


@report.command("html")
@_paper
@options.results
def html(paper: str, results: Path) -> None:
    """Write RESULTS/reports/PAPER: one self-contained HTML page, and its figures."""
    from vitutor_core.report.stages import write_page

    click.echo(write_page(paper, results))


@report.command("show")
@_paper
@options.results
def show(paper: str, results: Path) -> None:
    """Print the table of PAPER and the path of its report, from RESULTS."""
    from vitutor_core.report.stages import show_table

    show_table(paper, results)


@report.command("restore")
@_paper
@options.folder("--from published", "Where they were published.", required=True, exists=True)
@click.option("--missing-seeds", is_flag=True, help="Also the seeds that a row of RESULTS lacks.")
@options.results
def restore(paper: str, published: Path, missing_seeds: bool, results: Path) -> None:
    """Bring back evaluated rows that were published, beside those of RESULTS, for a table of all."""
    from vitutor_core.report.publish import restore_results

    for path in restore_results(paper, published, results, missing_seeds=missing_seeds):
        click.echo(str(path))


@report.command("publish")
@_paper
@options.results
@options.folder("--to target", "Write there.", required=True)
@options.file("--readme", "Replace its results block.", exists=True)
def publish(paper: str, results: Path, target: Path, readme: Path | None) -> None:
    """Keep the table and figures of RESULTS in the repository."""
    from vitutor_core.report.publish import publish_results
    from vitutor_core.report.stages import read_table

    for path in publish_results(read_table(paper, results), results, target, readme):
        click.echo(str(path))


@click.command("fields")
@options.file("--out", "Write the page there.", default=Path("docs/reference/fields.md"), show_default=True)
def fields(out: Path) -> None:
    """Write the reference page of the fields of all installed papers."""
    from vitutor_core.report.fields import fields_page

    write_text(out, fields_page())
    click.echo(f"written {out}")
