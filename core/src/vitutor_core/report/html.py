"""Write the report of a paper as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitutor_core.files import write_text
from vitutor_core.report import render
from vitutor_core.report.drawing import THEME, Picture
from vitutor_core.report.results import Run
from vitutor_core.report.table import Rows
from vitutor_core.report.verdict import Json
from vitutor_core.runs import Teacher


def write_report(table: Json, rows: Rows, figures: Sequence[Picture], path: Path) -> None:
    """Write the HTML report: verdicts, tables, figures, provenance.

    ``table`` is what `build_table` and ``figures`` what `draw_figures` return; ``rows`` are the results behind them.
    The page holds its pictures and styles, runs no script and requests nothing. Every text in it is escaped.
    Raises `ResourceError` if ``path`` cannot be written.
    """
    write_text(path, fill_template("report.html", table=table, figures=figures, render=render, **sources(rows)))


def fill_template(name: str, **values: Any) -> str:
    """Fill a template of this package, in the style of all pages."""
    environment = Environment(
        loader=PackageLoader("vitutor_core", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"typeset": typeset, "data_uri": data_uri}
    style = (files(__package__) / "page.css").read_text(encoding="utf-8")
    return environment.get_template(name).render(style=Markup(THEME + style), **values)  # noqa: S704 (our own file)


def sources(rows: Rows) -> Json:
    """Return where numbers come from: ``provenance`` of each row, ``machines`` and ``versions``."""
    made_with = [process for runs in rows.values() for run in runs for process in run.result.made_with]
    return {
        "provenance": [_provenance(runs) for runs in rows.values()],
        "machines": _distinct(_listed(process.machine) for process in made_with),
        "versions": _distinct(_listed(process.versions) for process in made_with),
    }


def typeset(text: str) -> str:
    """Put plus-minus, minus and a dash for +- and -, and keep numbers together with their signs and units."""
    if text == render.NOTHING:
        return "\N{EN DASH}"
    text = re.sub(r"(?<!\w)-(?=\d)", "\N{MINUS SIGN}", text.replace(" +- ", "\N{NBSP}\N{PLUS-MINUS SIGN}\N{NBSP}"))
    return re.sub(r"(?<=\d) (?=%)", "\N{NBSP}", text)


def data_uri(path: Path) -> str:
    """Return an SVG file as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _provenance(runs: Sequence[Run]) -> Json:
    results = [run.result for run in runs]
    teachers = _distinct(_teacher(teacher) for result in results for teacher in result.teachers.values())
    return {
        "row": results[0].row,
        "command": results[0].command,
        "seconds": statistics.fmean(result.seconds for result in results),
        "seeds": [(result.seed, result.fingerprint, result.commits) for result in results],
        "teachers": teachers,
    }


def _teacher(teacher: Teacher) -> str:
    known = "" if teacher.top1 is None else f", top-1 {teacher.top1:.1f} %"
    return f"{teacher.name}, sha256 {teacher.sha256[:12]}{known}"


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
