"""Keep a reproduction in the repository: its tables, its figures, and a block of the README."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitutor_core.errors import DataError
from vitutor_core.files import copy_file, write_text
from vitutor_core.report.headlines import HEADLINES, headline_figure
from vitutor_core.report.render import headlines, markdown_figure, plain, scope, to_markdown
from vitutor_core.report.verdict import Json
from vitutor_core.runs import RunDir, RunRecord

_NO_CURVES = "epoch\n"


def publish_results(table: Json, folder: Path, target: Path, readme: Path | None) -> list[Path]:
    """Copy table, figures, and the record and curves of each run from the results ``folder`` to ``target``.

    Figures of an earlier publication that are no longer drawn are deleted, and the paper's block of ``readme`` is
    replaced, and that of the headlines of all papers if there is one. Returns what was written. Raises `DataError` if
    the README has no ``<!-- results:PAPER -->`` ... ``<!-- end -->`` block.
    """
    paper = table["paper"]
    records = sorted((folder / "evaluation" / paper).glob("*/seed-*/metrics.json"))
    runs = [RunRecord.read(path.parent, error=DataError).model_dump(mode="json") for path in records]
    curves = [RunDir(path.parent).curves.read_text() for path in records]
    written = [target / f"{paper}.json", target / f"{paper}.md", _runs(target, paper), _curves(target, paper)]
    write_text(written[0], portable(json.dumps(table, indent=1), folder) + "\n")
    write_text(written[2], portable(line_by_line(runs), folder))
    write_text(written[3], line_by_line(curves))
    for figure in _figures(folder / "reports" / paper):
        written.append(target / f"{paper}-{figure.name}")
        copy_file(figure, written[-1])
    for path in sorted(set(_figures(target, f"{paper}-")) - set(written)):
        path.unlink()
        warnings.warn(f"{path} was deleted: it is not drawn from these results", stacklevel=2)
    shown = [markdown_figure(path.name) for path in written[4:]]
    page = [to_markdown(table).rstrip("\n"), *(["## Figures", *shown] if shown else [])]
    write_text(written[1], "\n\n".join(page) + "\n")
    headlines_drawn = headline_figure(target)
    written += [headlines_drawn.path] if headlines_drawn is not None else []
    if readme is not None:
        where = target.absolute().relative_to(readme.absolute().parent)
        block = readme_block(table, where / f"{paper}.md", _main_figure(table, target), where)
        text = replace_block(readme.read_text(encoding="utf-8"), paper, block, where=str(readme))
        if block_start(HEADLINES) in text:
            drawn = "No headline difference of a paper has a verdict yet."
            if headlines_drawn is not None:
                drawn = f"{markdown_figure(where / headlines_drawn.path.name)}\n\n{headlines_drawn.caption}"
            text = replace_block(text, HEADLINES, drawn, where=str(readme))
        write_text(readme, text)
        written.append(readme)
    return written


def restore_results(paper: str, published: Path, results: Path, *, missing_seeds: bool = False) -> list[Path]:
    """Write the evaluated runs of what was ``published`` into ``results``, but for rows that are there already.

    So a table can be made of rows that were trained at different times; their weights are not needed. With
    ``missing_seeds`` a row that is there gets the seeds that it lacks. Returns the folders of runs; raises `DataError`
    where what was published cannot be read.
    """
    path, drawn_from = _runs(published, paper), _curves(published, paper)
    try:
        runs = [
            RunRecord.parse(json.dumps(run), where=str(path), error=DataError, advice="publish it again")
            for run in json.loads(path.read_text())
        ]
        curves = json.loads(drawn_from.read_text()) if drawn_from.exists() else []
        pairs = list(zip(runs, map(str, curves or [_NO_CURVES] * len(runs)), strict=True))
    except (OSError, ValueError, TypeError, RecursionError):
        raise DataError(f"{path.absolute()}: no readable runs; publish them first") from None
    if not drawn_from.exists():
        message = f"{drawn_from} is missing, so learning curves that are published next will be without these rows"
        warnings.warn(message, stacklevel=2)
    folder = results / "evaluation" / paper
    there = {path if missing_seeds else path.parent for path in folder.glob("*/seed-*")}
    restored = []
    for run, lines in pairs:
        target = folder / run.row / f"seed-{run.seed}"
        if there.isdisjoint((target, target.parent)):
            run.write(target)
            write_text(RunDir(target).curves, lines)
            restored.append(target)
    return restored


def portable(text: str, folder: Path) -> str:
    """Return JSON whose paths of a results ``folder`` begin at its name, also those of the folder it is a copy of."""
    where = text.replace(f"{folder.absolute().parent}/", "")
    return re.sub(rf'(?<=")/[^"]*?/(?={re.escape(folder.name)}/)', "", where)


def line_by_line(entries: Iterable[Any]) -> str:
    """Return a JSON list with an entry on each line."""
    return "[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n"


def _runs(target: Path, paper: str) -> Path:
    return target / f"{paper}-runs.json"


def _curves(target: Path, paper: str) -> Path:
    return target / f"{paper}-curves.json"


def _figures(folder: Path, prefix: str = "") -> list[Path]:
    return sorted(path for path in folder.glob(f"{prefix}*") if path.suffix in {".svg", ".png"})


def readme_block(table: Json, page: Path, figure: str | None, where: Path) -> str:
    """Return what the README shows of a paper: scope, verdicts if there are any, a figure, and where the tables are.

    ``page`` and ``where``, the folder of the ``figure``, are relative to the README.
    """
    parts = [plain(scope(table)), "\n".join(f"- {plain(sentence)}" for sentence in headlines(table))]
    if figure is not None:
        parts.append(markdown_figure(where / f"{figure}.svg"))
    return "\n\n".join([*parts, f"[All tables and figures]({page})"])


def _main_figure(table: Json, target: Path) -> str | None:
    """Return the published figure that shows most of a paper: the first of its tables' figures, else the curves."""
    names = [f"{part['figure']}-{part['id']}" for part in table["tables"] if part["figure"]]
    published = (f"{table['paper']}-{name}" for name in [*names, "learning-curves"])
    return next((name for name in published if (target / f"{name}.svg").exists()), None)


def block_start(name: str) -> str:
    """Return the line of a page behind which a block of results begins."""
    return f"<!-- results:{name} -->"


def replace_block(text: str, name: str, block: str, *, where: str) -> str:
    """Replace what stands between ``<!-- results:name -->`` and the next ``<!-- end -->``."""
    start, end = block_start(name), "<!-- end -->"
    before, found, rest = text.partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise DataError(f"{where}: no block '{start}' ... '{end}'")
    return f"{before}{start}\n{block}\n{end}{after}"
