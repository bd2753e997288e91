"""Keep a reproduction in the repository: its tables, its figures, and a block of the README."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vitutor_core.errors import DataError
from vitutor_core.report.render import headlines, line_cells, markdown_grid, scope, to_markdown
from vitutor_core.report.verdict import Json


def publish_results(table: Json, folder: Path, target: Path, readme: Path | None) -> list[Path]:
    """Copy table, figures and the record of each run from the results ``folder`` to ``target``.

    Replaces the paper's block of ``readme`` and returns what was written. Raises `DataError` if the README has no
    ``<!-- results:PAPER -->`` ... ``<!-- end -->`` block.
    """
    target.mkdir(parents=True, exist_ok=True)
    paper = table["paper"]
    runs = [json.loads(path.read_text()) for path in sorted((folder / paper).glob("*/seed-*/metrics.json"))]
    written = [target / f"{paper}.json", target / f"{paper}.md", target / f"{paper}-runs.json"]
    written[0].write_text(json.dumps(table, indent=1) + "\n")
    written[1].write_text(to_markdown(table))
    written[2].write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    for figure in sorted((folder / "reports" / paper).glob("*.png")):
        written.append(target / f"{paper}-{figure.name}")
        shutil.copyfile(figure, written[-1])
    if readme is not None:
        readme.write_text(replace_block(readme.read_text(), paper, readme_block(table), where=str(readme)))
        written.append(readme)
    return written


def readme_block(table: Json) -> str:
    """Return what the README shows of a paper: scope, verdicts, and its table by data fraction, else its first."""
    main = next((part for part in table["tables"] if part["figure"] == "fraction"), table["tables"][0])
    bullets = "\n".join(f"- {sentence}" for sentence in headlines(table))
    return "\n\n".join([scope(table), bullets, markdown_grid(*line_cells(main, full=True))])


def replace_block(text: str, name: str, block: str, *, where: str) -> str:
    """Replace what stands between ``<!-- results:name -->`` and the next ``<!-- end -->``."""
    start, end = f"<!-- results:{name} -->", "<!-- end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"{where}: no block '{start}' ... '{end}'")
    return f"{before}{start}\n{block}\n{end}{after}"
