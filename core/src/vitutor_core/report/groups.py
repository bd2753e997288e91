"""A table as groups of points: one group per label, one point per method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitutor_core.report.drawing import Picture, draw_legend, save_picture, style_of
from vitutor_core.report.paper import PaperResults
from vitutor_core.report.render import measured, number
from vitutor_core.report.verdict import Json


def groups_figure(paper: PaperResults, part: Json, folder: Path) -> Picture | None:
    """Draw the metric of each line in the group of its label: ours with the standard deviation, and the paper's.

    ``part`` is a table of `build_table`. None unless two lines were measured.
    """
    lines = [line for line in part["lines"] if line["method"]]
    done = [line for line in lines if line["ours"]]
    if len(done) < 2:
        return None
    labels = list(dict.fromkeys(line["label"] for line in lines))
    methods = list(dict.fromkeys(line["method"] for line in lines))
    groups = {label: [line for line in lines if line["label"] == label] for label in labels}

    def place(line: Json) -> float:
        """Return where a line stands: side by side with the others of its label, within a third to either side."""
        group = groups[line["label"]]
        apart = min(0.2, 0.66 / max(1, len(group) - 1))
        return labels.index(line["label"]) + apart * (group.index(line) - (len(group) - 1) / 2)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for method in methods:
            style = style_of(paper, method) | {"linestyle": "none"}
            own = [(place(line), line) for line in lines if line["method"] == method]
            ours = [(x, line["ours"]) for x, line in own if line["ours"]]
            left.errorbar(
                [x for x, _ in ours],
                [stats["mean"] for _, stats in ours],
                [stats["sd"] or 0 for _, stats in ours],
                **style,
            )
            printed = [(x, line["paper"]) for x, line in own if line["paper"] is not None]
            right.plot([x for x, _ in printed], [value for _, value in printed], **style)
        for axes, title in ((left, "measured here"), (right, f"paper ({paper.scale})")):
            axes.set(title=title, xlim=(-0.5, len(labels) - 0.5))
            axes.set_xticks(range(len(labels)), labels)
            axes.grid(visible=False, axis="x")
        left.set_ylabel("top-1 accuracy (%)" if part["metric"] == "top1" else part["metric"])
        draw_legend(figure, left)

    listed = "; ".join(
        f"{line['label']}, {paper.title_of(line['row'])}: {measured(line['ours'], part['decimals'])}, "
        f"paper {number(line['paper'], part['decimals'])}"
        for line in done
    )
    return save_picture(
        folder / f"groups-{part['id']}",
        draw,
        title=part["title"],
        caption="Mean over seeds with the standard deviation. The panels share no scale: only the order and the gaps "
        "can be compared.",
        alt=f"Chart of points, a group per label. {listed}.",
    )
