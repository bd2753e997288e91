"""A table as groups of points: one group per label, one point per measured column or method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitutor_core.report.drawing import Picture, beside_the_paper, draw_legend, save_picture, style_of
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
    # What the points of a group differ in; it looks like the first line that has it.
    states: dict[str, list[Json]] = {}
    for line in lines:
        states.setdefault(line["column"] or paper.title_of(line["row"]), []).append(line)

    def draw(figure: Any) -> None:
        left, right = beside_the_paper(figure, part)
        apart = min(0.2, 0.66 / max(1, len(states) - 1))
        for axes, source in ((left, "ours"), (right, "paper")):
            labels = list(dict.fromkeys(line["label"] for line in lines if line[source] is not None))
            for place, (state, same) in enumerate(states.items()):
                points = [line for line in same if line[source] is not None]
                if not points:
                    continue
                x = [labels.index(line["label"]) + apart * (place - (len(states) - 1) / 2) for line in points]
                values = [line[source]["mean"] if source == "ours" else line[source] for line in points]
                spreads = [line[source]["sd"] or 0 for line in points] if source == "ours" else None
                axes.errorbar(x, values, spreads, **style_of(paper, same[0]["row"]) | {"label": state, "linestyle": ""})
            axes.set_xlim(-0.5, len(labels) - 0.5)
            axes.set_xticks(range(len(labels)), labels)
            axes.grid(visible=False, axis="x")
        left.set_ylabel("top-1 accuracy (%)" if part["metric"] == "top1" else part["metric"])
        draw_legend(figure)

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
