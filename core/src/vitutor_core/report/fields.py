"""The reference page of all fields, written from the schemas. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vitutor_core.config import Config
from vitutor_core.explain import REQUIRED, Field, fields_of
from vitutor_core.paper import installed_papers, load
from vitutor_core.schema import RunConfig

_HEAD = """# Fields of a run's config

Set one with `--set FIELD=VALUE`; `PAPER config --explain FIELD` says what its value is and where that comes from. In a
path, `KEY` is a name of your own, such as a teacher's role. This page is written by `vitutor fields`.
"""


def fields_page() -> str:
    """Return the page: the fields that all papers share, then those of each paper."""
    parts = [_HEAD, "## All papers", "", *_table(fields_of(RunConfig))]
    shared = {field.path for field in fields_of(RunConfig)}
    for package, paper in installed_papers().items():
        schema: type[Config] = load(paper.config)
        parts += ["", f"## {package}", "", *_table(field for field in fields_of(schema) if field.path not in shared)]
    return "\n".join(parts) + "\n"


def _escaped(cell: str) -> str:
    return re.sub(r"<(?=\w)", "&lt;", cell.replace("|", r"\|"))


def _table(found: Iterable[Field]) -> list[str]:
    lines = ["| field | type and bounds | default | what it is |", "|---|---|---|---|"]
    for field in found:
        default = REQUIRED if field.default == REQUIRED else f"`{field.default}`"
        cells = (f"`{field.path}`", field.kind, default, field.text)
        lines.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    return lines
