"""Show a table of `build_table` in a terminal or as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from vitutor_core.report.verdict import Json

NOTHING = "-"


def number(value: float | None, decimals: int = 1) -> str:
    """Format a printed number."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int = 1) -> str:
    """Format a printed difference with its sign."""
    return NOTHING if value is None else f"{value:+.{decimals}f}"


def compared(pair: Json) -> str:
    """Name a difference by its two rows."""
    return f"{pair['subject']} minus {pair['reference']}{pair['where']}"


def claimed(pair: Json, decimals: int = 1) -> str:
    """Format what the paper says of a difference: the number that it prints, else the side that its text claims."""
    return pair.get("claim") or signed(pair["paper"], decimals)  # a table of an older version has no claims


def measured(stats: Json | None, decimals: int = 1) -> str:
    """Format mean and standard deviation of a row."""
    if stats is None:
        return NOTHING
    return number(stats["mean"], decimals) + ("" if stats["sd"] is None else f" +- {stats['sd']:.{decimals}f}")


def gap(found: Json | None, decimals: int = 1) -> str:
    """Format a measured difference and its standard error."""
    if found is None:
        return NOTHING
    error = found["standard_error"]
    return signed(found["mean"], decimals) + ("" if error is None else f" +- {error:.{decimals}f}")


def feature(value: Any) -> str:
    """Format a descriptive cell: yes for a tick of the paper, nothing for its absence."""
    if isinstance(value, bool) or value is None:
        return "yes" if value else ""
    return str(value)


def line_cells(table: Json, *, full: bool) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of a table's lines, as text; ``full`` adds the paper's feature columns."""
    with_column = any(line["column"] for line in table["lines"])
    features, decimals = table["features"] if full else {}, table["decimals"]
    headings = ["row", *(["method"] if with_column else []), *features.values()]
    headings += ["paper", "to base", "ours", "to base", "seeds", "images", "updates"]
    return headings, [
        [
            line["label"],
            *([line["column"]] if with_column else []),
            *(feature(line["features"][name]) for name in features),
            number(line["paper"], decimals),
            "base" if line["is_baseline"] else signed(line["paper_difference"], decimals),
            measured(line["ours"], decimals),
            "base" if line["is_baseline"] else gap(line["difference"], decimals),
            *budget(line),
        ]
        for line in table["lines"]
    ]


def budget(line: Json) -> list[str]:
    """Format the number of seeds, training images and updates of a line."""
    if line["ours"] is None:
        return [NOTHING] * 3
    return [str(line["ours"]["n"]), f"{line['train_images']:,}", f"{line['updates']:,}"]


def comparison_cells(table: Json) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of a table's comparisons, as text."""
    lines = [
        [
            compared(pair),
            claimed(pair, table["decimals"]),
            gap(pair["ours"], table["decimals"]),
            *((pair["verdict"], number(pair["smallest"], table["decimals"])) if has_verdicts(table) else ()),
        ]
        for pair in table["comparisons"]
    ]
    return ["difference", "paper", "ours", *(("verdict", "could see") if has_verdicts(table) else ())], lines


def has_verdicts(table: Json) -> bool:
    """Return whether the comparisons of a table are judged: not in a smoke test."""
    return any(pair["verdict"] is not None for pair in table["comparisons"])


def scope(table: Json) -> str:
    """Say what the measured numbers are: scale, seeds, training images, updates."""
    lines = [line for part in table["tables"] for line in part["lines"] if line["ours"]] + table["further"]
    lines = [line for line in lines if line["updates"]] or lines  # of those that were trained
    images, updates = (_range([line[name] for line in lines]) for name in ("train_images", "updates"))
    scale = table["scale"] + (" (smoke test)" if table["is_smoke_test"] else "")
    return f"Scale {scale}; seeds {listed(table['seeds'])}; {images} training images; {updates} updates per run."


def listed(seeds: Sequence[int]) -> str:
    """List the seeds of a table, many in a row by the first and the last."""
    if len(seeds) > 5 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _range(values: list[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def headlines(table: Json) -> list[str]:
    """Return what is said of the differences that the paper is about and that were run, then the count of all."""
    pairs = [pair for part in table["tables"] for pair in part["comparisons"] if pair["headline"] and pair["ours"]]
    return [*(pair["sentence"] for pair in pairs), table["summary"]]


def to_markdown(table: Json) -> str:
    """Render everything but the provenance as Markdown tables."""
    parts = [f"# {plain(table['title'])}", *map(plain, (table["citation"], scope(table), *table["notes"]))]
    parts.append(_bullets(map(plain, headlines(table))))
    for part in table["tables"]:
        parts += [f"## {plain(part['title'])}", plain(part["caption"]), markdown_grid(*line_cells(part, full=True))]
        if part["comparisons"]:
            parts.append(markdown_grid(*comparison_cells(part)))
    if table["further"]:
        parts += ["## Further rows", markdown_grid(*further_cells(table))]
    return "\n\n".join(parts) + "\n"


def further_cells(table: Json) -> tuple[list[str], list[list[str]]]:
    """Return the headings and the cells of the rows that the paper does not print."""
    lines = [[line["row"], measured(line["ours"]), *budget(line)] for line in table["further"]]
    return ["row", "ours", "seeds", "images", "updates"], lines


def plain(text: str) -> str:
    """Escape what Markdown or HTML would take for more than text, and write plus-minus for +-."""
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split()).replace(" +- ", " \N{PLUS-MINUS SIGN} "))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def markdown_figure(file: Path | str) -> str:
    """Show a picture, its name as its text."""
    return f"![{Path(file).stem.replace('-', ' ')}]({file})"


def markdown_grid(headings: list[str], lines: list[list[str]]) -> str:
    """Render one table as Markdown."""
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(map(plain, row)) + " |" for row in rows)


def console_of(width: int) -> Console:
    """Return a console for the terminal or, where the output goes elsewhere, of that many columns."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def print_table(table: Json, console: Console) -> None:
    """Print everything but the provenance; made for 100 columns."""
    console.print(f"[bold]{escape(table['title'])}[/bold]\n{escape(scope(table))}", highlight=False)
    for part in table["tables"]:
        console.print(_apart(*line_cells(part, full=False), title=part["title"]))
        if part["comparisons"]:
            console.print(_apart(*comparison_cells(part)))
    if table["further"]:
        console.print(_apart(*further_cells(table), title="Further rows"))
    for note in table["notes"]:
        console.print(f"\n[dim]{escape(note)}[/dim]", highlight=False)
    console.print(f"\n{escape(_bullets(headlines(table)))}", highlight=False)


def _apart(headings: list[str], lines: list[list[str]], *, title: str | None = None) -> Padding:
    return Padding(text_grid(headings, lines, title=title), (1, 0, 0, 0))


def text_grid(headings: Sequence[str], lines: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """Return one table for a console: names and words on the left of their columns, numbers on the right."""
    grid = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None, header_style="dim")
    for index, heading in enumerate(headings):
        is_text = index == 0 or heading in {"method", "verdict", "student"}
        grid.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text)
    for line in lines:
        grid.add_row(*map(escape, line))
    return grid
