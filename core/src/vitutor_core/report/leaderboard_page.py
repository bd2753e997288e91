"""The files of `vitutor compare`: its table as JSON, Markdown and one HTML page, with two figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from vitutor_core.files import copy_file, write_json, write_text
from vitutor_core.report.drawing import COLOURS, INK, QUIET, Picture, draw_legend, save_picture
from vitutor_core.report.html import fill_template, sources
from vitutor_core.report.leaderboard_text import composition_grid, head, line_grid, notes, to_markdown
from vitutor_core.report.publish import line_by_line, portable
from vitutor_core.report.render import gap, measured
from vitutor_core.report.results import Run
from vitutor_core.report.verdict import Json

_KINDS = {
    "plain": (COLOURS[0], "o", "the student alone"),
    "long": (COLOURS[0], "s", "the student alone, longer"),
    "method": (COLOURS[2], "D", "a method"),
    "model": (COLOURS[1], "^", "another model"),
    "composition": (COLOURS[3], "P", "several at once"),
}
"""Colour, marker and label of each kind of line."""


def write_board(board: Json, rows: Mapping[str, Sequence[Run]], out: Path) -> list[Path]:
    """Write ``compare.json``, ``compare.md``, ``compare.html`` and the figures into ``out``; return the files."""
    pictures = [gains_figure(board, out), *([matrix_figure(board, out)] if _pairs(board) else [])]
    page = fill_template(
        "leaderboard.html",
        board=board,
        head=head(board),
        lines=line_grid(board),
        compositions=composition_grid(board),
        figures=pictures,
        notes=notes(board),
        **sources(rows),
    )
    write_json(out / "compare.json", board)
    write_text(out / "compare.md", to_markdown(board, [picture.path.name for picture in pictures]))
    write_text(out / "compare.html", page)
    return [*(out / f"compare.{suffix}" for suffix in ("json", "md", "html")), *(picture.path for picture in pictures)]


def publish_board(board: Json, rows: Mapping[str, Sequence[Run]], out: Path, target: Path) -> list[Path]:
    """Keep table, page text, figures and the record of each run in the repository, in files named by the scale."""
    scale = board["scale"]
    figures = sorted(out.glob("compare-*.svg"))
    written = [target / f"{scale}{suffix}" for suffix in (".json", ".md", "-runs.json")]
    written += [target / f"{scale}-{figure.name.removeprefix('compare-')}" for figure in figures]
    for old in set(target.glob(f"{scale}-*.svg")) - set(written):
        old.unlink()
    for figure, copy in zip(figures, written[3:], strict=True):
        copy_file(figure, copy)
    records = [run.result.model_dump(mode="json") for runs in rows.values() for run in runs]
    write_text(written[0], portable(json.dumps(board, indent=1), out) + "\n")
    write_text(written[1], to_markdown(board, [path.name for path in written[3:]]))
    write_text(written[2], portable(line_by_line(records), out))
    return written


def gains_figure(board: Json, folder: Path) -> Picture:
    """Draw each line's gain over the student alone, and its accuracy against its total compute."""
    lines = [line for line in board["lines"] if line["kind"] != "plain"]

    def draw(figure: Any) -> None:
        figure.set_size_inches(9.4, max(3.7, 1.4 + 0.3 * len(lines)))
        left, right = figure.subplots(1, 2)
        for index, line in enumerate(lines):
            found = line["gain"]
            left.barh(index, found["mean"], xerr=found["standard_error"], color=_KINDS[line["kind"]][0], ecolor=INK)
        left.axvline(0, color=QUIET, linewidth=1)
        left.set_yticks(range(len(lines)), [line["title"] for line in lines])
        left.invert_yaxis()
        left.set(title="equal updates", xlabel="gain over the student alone (points)")
        for kind, (colour, marker, label) in _KINDS.items():
            shown = [line for line in board["lines"] if line["kind"] == kind]
            if shown:
                x, y = [line["compute"] for line in shown], [line["top1"]["mean"] for line in shown]
                spread = [line["top1"]["sd"] or 0 for line in shown]
                style = {"color": colour, "marker": marker, "linestyle": "", "label": label}
                right.errorbar(x, y, spread, **style)
        alone = sorted(
            (line["compute"], line["top1"]["mean"]) for line in board["lines"] if line["kind"] in {"plain", "long"}
        )
        right.plot(*zip(*alone, strict=True), color=QUIET, linewidth=1, linestyle="--", zorder=0)
        right.set(title="total compute", xlabel="times the compute of the student alone", ylabel="top-1 accuracy (%)")
        draw_legend(figure)

    listed = "; ".join(
        f"{line['title']}: {gap(line['gain'])} at {line['compute']:.1f} times the compute" for line in lines
    )
    return save_picture(
        folder / "compare-gains",
        draw,
        title="What each line adds, and what it costs",
        caption="Left: top-1 minus that of the student alone, with one standard error. Right: mean and standard "
        "deviation over seeds against total compute, teachers and pre-training included; dashed: the student alone, "
        "trained longer.",
        alt=f"Bar chart of gains in points, and a chart of accuracy against compute. {listed}.",
    )


def matrix_figure(board: Json, folder: Path) -> Picture:
    """Draw the gain of each composition of two lines in the cell of both, and what it is beyond the sum of theirs."""
    by_name = {line["name"]: line for line in board["lines"]}
    pairs = _pairs(board)
    in_order = sorted(pairs, key=itemgetter("name"))
    firsts, seconds = (list(dict.fromkeys(line["parts"][k] for line in in_order)) for k in (0, 1))
    cells: dict[tuple[int, int], Json] = {}
    for line in pairs:
        cells[1 + firsts.index(line["parts"][0]), 1 + seconds.index(line["parts"][1])] = line
    cells |= {(1 + row, 0): by_name[name] for row, name in enumerate(firsts) if name in by_name}
    cells |= {(0, 1 + column): by_name[name] for column, name in enumerate(seconds) if name in by_name}
    largest = max(abs(line["gain"]["mean"]) for line in cells.values()) or 1.0

    def title(name: str) -> str:
        return str(by_name[name]["title"]) if name in by_name else name

    def draw(figure: Any) -> None:
        import numpy as np

        axes = figure.subplots()
        gains = np.full((1 + len(firsts), 1 + len(seconds)), np.nan)
        gains[0, 0] = 0
        for (row, column), line in cells.items():
            gains[row, column] = line["gain"]["mean"]
            extra = line.get("extra")
            below = f"\n({extra['mean']:+.1f} to the sum)" if extra else ""
            axes.text(column, row, f"{line['gain']['mean']:+.1f}{below}", ha="center", va="center", color="#1b1b1b")
        shown = axes.imshow(gains, cmap="PuOr_r", vmin=-2 * largest, vmax=2 * largest, aspect="auto")
        axes.set_xticks(range(1 + len(seconds)), ["nothing", *map(title, seconds)])
        axes.set_yticks(range(1 + len(firsts)), ["the student alone", *map(title, firsts)])
        axes.grid(visible=False)
        axes.set_title("gain over the student alone, with")
        figure.colorbar(shown, ax=axes, label="gain (points)").ax.set_ylim(-largest, largest)

    listed = "; ".join(f"{line['title']}: {measured(line['top1'])}, {gap(line['gain'])}" for line in pairs)
    return save_picture(
        folder / "compare-matrix",
        draw,
        title="Do gains add?",
        caption="Gain over the student alone of a row's method with what a column adds; in brackets, how far that is "
        "from the sum of the two gains.",
        alt=f"Matrix of gains. {listed}.",
    )


def _pairs(board: Json) -> list[Json]:
    return [line for line in board["lines"] if len(line["parts"]) == 2]
