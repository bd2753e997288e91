"""The stages of a graph that make a paper's table and page: each reads the files of those before it."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from vitutor_core.errors import DataError
from vitutor_core.files import write_json, write_text
from vitutor_core.paper import installed_paper
from vitutor_core.report.analyses import analysis_pictures
from vitutor_core.report.gallery import gallery_figure
from vitutor_core.report.html import write_report
from vitutor_core.report.metrics import write_metrics
from vitutor_core.report.paper import PaperResults, load_paper_results
from vitutor_core.report.plots import draw_figures
from vitutor_core.report.render import console_of, print_table, to_markdown
from vitutor_core.report.results import load_results
from vitutor_core.report.table import build_table
from vitutor_core.terminal import say

_SEAL = "sha256"


def write_table(paper: str, results: Path) -> None:
    """Write the table of a paper, and a file of metrics and curves for each row."""
    printed = _printed(paper)
    folder = results / "evaluation"
    is_empty = (folder / paper).is_dir() and not any((folder / paper).glob("*/seed-*"))
    rows = {} if is_empty else load_results(folder, paper)
    built = build_table(printed, rows) if rows else {"paper": paper, "skipped": "no row of it was run"}
    write_json(results / "tables" / f"{paper}.json", {**built, _SEAL: _seal(built)})
    write_metrics(rows, results / "metrics" / paper, results / "curves" / paper)


def read_table(paper: str, results: Path) -> dict[str, Any]:
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


def show_table(paper: str, results: Path) -> None:
    """Print the table of a paper and where its page is."""
    table = read_table(paper, results)
    if "skipped" in table:
        say(f"{paper}: no table, {table['skipped']}")
        return
    print_table(table, console_of(110))
    say(f"report: {(results / 'reports' / paper / 'report.html').absolute()}")


def write_page(paper: str, results: Path) -> str:
    """Write the page of a paper and its figures; return what to tell the user."""
    out = results / "reports" / paper
    out.mkdir(parents=True, exist_ok=True)
    built = read_table(paper, results)
    if "skipped" in built:
        return f"{paper}: no report, {built['skipped']}"
    rows, printed = load_results(results / "evaluation", paper), _printed(paper)
    figures = draw_figures(printed, built, rows, out)
    gallery = gallery_figure(printed, results, out)
    figures += [gallery] if gallery is not None else []
    figures += analysis_pictures(results / "analyses" / paper, out)
    write_report(built, rows, figures, out / "report.html")
    write_text(out / "table.md", to_markdown(built))
    return f"report {out / 'report.html'}"


def _printed(paper: str) -> PaperResults:
    return load_paper_results(Path(str(files(installed_paper(paper).package))) / "paper_results.yaml")


def _seal(table: dict[str, Any]) -> str:
    written = json.loads(json.dumps(table))  # keys are text there
    return hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()
