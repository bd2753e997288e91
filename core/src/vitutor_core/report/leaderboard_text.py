"""The table of `vitutor compare` as text: cells for the terminal, for Markdown and for the HTML page."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape

from vitutor_core.report.render import (
    NOTHING,
    console_of,
    gap,
    listed,
    markdown_figure,
    markdown_grid,
    measured,
    number,
    plain,
    text_grid,
)
from vitutor_core.report.verdict import Json

Grid = tuple[list[str], list[list[str]]]
_WORDS = {"above": "helps", "below": "harms"}
_SUMS = {"above": "more than the sum", "below": "less than the sum"}


def head(board: Json) -> list[tuple[str, str]]:
    """Return what all lines share, by its name."""
    student = board["student"]
    kwargs = ", ".join(f"{name} {value}" for name, value in student["kwargs"].items())
    images = (
        f"{board['train_images']:,} of {board['source']} to train on, {board['evaluation_images']:,} to evaluate on"
    )
    return [
        ("scale", board["scale"] + (" (smoke test)" if board["is_smoke_test"] else "")),
        ("images", f"{images}; {board['image_size']} px"),
        ("student", f"{student['name']}{f' ({kwargs})' if kwargs else ''}, {student['parameters']:,.0f} parameters"),
        ("budget", f"{board['updates']:,} updates of {board['batch_size']} images; seeds {listed(board['seeds'])}"),
    ]


def line_grid(board: Json) -> Grid:
    """Return the headings and cells of the lines and, below them, of the teachers."""
    headings = ["line", "student", "top-1", "gain", "verdict", "could see", "to longer", "updates", "before"]
    headings += ["images", "minutes", "compute"]
    rows = [_cells(line) for line in board["lines"]]
    return headings, rows + [_teacher_cells(teacher) for teacher in board["teachers"]]


def _cells(line: Json) -> list[str]:
    images = line["spent"]["images"] + line["before"]["images"]
    return [
        line["title"],
        "common" if line["own"] is None else f"own, {number((line['parameters'] or 0) / 1e6, 2)} M",
        measured(line["top1"]),
        "base" if line["kind"] == "plain" else gap(line["gain"]),
        *_verdict(line.get("verdict"), _WORDS),
        gap(line["to_long"]) + _star(line.get("verdict_to_long")),
        f"{line['spent']['updates']:,.0f}",
        f"{line['before']['updates']:,.0f}",
        f"{images:,.0f}",
        number(line["seconds"] / 60),
        f"{line['compute']:.1f}x" + ("+" if line["uncounted"] else ""),
    ]


def _teacher_cells(teacher: Json) -> list[str]:
    return [
        f"teacher {teacher['name']}",
        teacher["model"],
        number(teacher["top1"]),
        *[NOTHING] * 4,
        f"{teacher['updates']:,}",
        NOTHING,
        f"{teacher['images']:,}",
        number(teacher["seconds"] / 60),
        f"{teacher['compute']:.1f}x",
    ]


def composition_grid(board: Json) -> Grid | None:
    """Return the headings and cells of the compositions; None where there are none."""
    lines = [line for line in board["lines"] if line["parts"]]
    headings = ["composition", "top-1", "gain", "sum of gains", "beyond the sum", "verdict", "could see", "compute"]
    rows = [
        [
            line["title"],
            measured(line["top1"]),
            gap(line["gain"]),
            NOTHING if line["sum"] is None else f"{line['sum']:+.1f}",
            gap(line["extra"]),
            *_verdict(line.get("verdict_of_extra"), _SUMS),
            f"{line['compute']:.1f}x",
        ]
        for line in lines
    ]
    return (headings, rows) if lines else None


def notes(board: Json) -> list[str]:
    """Say what the columns are, and what students that are not the common one have."""
    own = [f"{line['title']}: a student of its own, {line['own']}." for line in board["lines"] if line["own"]]
    uncounted = {name for line in board["lines"] for name in line["uncounted"]}
    text = [
        "Top-1 in %, mean +- standard deviation over seeds. Gains are over the student alone at equal updates, "
        "+- standard error. Verdicts are t-tests over seeds and images with Holm's correction over the table; beside "
        "an inconclusive one stands the gain that would have been seen with 80 % chance. Methods are not tested "
        "against each other.",
        "To longer: over the student alone, trained for the total compute of the costliest method, for methods and "
        "compositions that took no more than that; a star marks a verdict. Compute: FLOPs of training, forward and "
        "backward, of one run and of every teacher and pre-training that it needs, over those of the student alone. "
        "Before: the updates of these. Images: those seen in all updates. Minutes: measured.",
        "A teacher is one run, whose accuracy has no spread.",
    ]
    for teacher in board["teachers"]:
        if teacher["train_images"] != board["train_images"]:
            images = f"{teacher['train_images']:,} images; the students on {board['train_images']:,}"
            text.append(f"The teacher {teacher['name']} was trained on {images}.")
    text += [f"The training of {', '.join(sorted(uncounted))} is not known, and not counted (+)."] if uncounted else []
    return [*own, *text]


def to_markdown(board: Json, figures: Sequence[str] = ()) -> str:
    """Render the table, the compositions and the answer as Markdown."""
    parts = [f"# One student, one budget: scale {board['scale']}", f"**{plain(board['answer'])}**"]
    parts.append("\n".join(f"- {name}: {plain(text)}" for name, text in head(board)))
    parts.append(markdown_grid(*line_grid(board)))
    composed = composition_grid(board)
    parts += ["## Do gains add?", markdown_grid(*composed)] if composed else []
    parts += [markdown_figure(name) for name in figures]
    parts.append("\n".join(f"- {plain(note)}" for note in notes(board)))
    return "\n\n".join(parts) + "\n"


def print_board(board: Json) -> None:
    """Print the table for a terminal, or for 150 columns."""
    console = console_of(150)
    for name, text in head(board):
        console.print(f"{name:8}{escape(text)}", highlight=False)
    for grid in filter(None, (line_grid(board), composition_grid(board))):
        console.print(text_grid(*grid))
    console.print(f"\n{escape(board['answer'])}", highlight=False)


def _verdict(judged: Json | None, words: dict[str, str]) -> tuple[str, str]:
    if judged is None:
        return NOTHING, NOTHING
    return words.get(judged["verdict"]) or str(judged["verdict"]), number(judged["smallest"])


def _star(judged: Json | None) -> str:
    return "*" if judged is not None and judged["verdict"] in _WORDS else ""
