"""A table as groups of points: one group per label or share of the data, one point per measured column or method."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vitutor_core.report.drawing import Picture, beside_the_paper, draw_legend, save_picture, style_of
from vitutor_core.report.paper import PaperResults
from vitutor_core.report.render import measured, number
from vitutor_core.report.verdict import Json


def groups_figure(paper: PaperResults, part: Json, folder: Path) -> Picture | None:
    """Draw the metric of each line in the group of its label: ours with the standard deviation, and the paper's.

    ``part`` is a table of `build_table`. Where it asks for the figure "fraction", groups stand at their share of the
    training data and points of the same kind are joined. None unless two groups or two lines were measured.
    """
    joined = part["figure"] == "fraction"
    lines = [line for line in part["lines"] if line["method"] and (line["fraction"] or not joined)]
    done = [line for line in lines if line["ours"]]
    if len({line["label"] for line in done} if joined else done) < 2:
        return None
    # What the points of a group differ in; it looks like the first line that has it.
    states: dict[str, list[Json]] = {}
    for line in lines:
        states.setdefault(line["column"] or paper.title_of(line["row"]), []).append(line)
    alone = len({line["label"] for line in lines}) == len(lines)
    apart = 0.0 if joined or alone else min(0.2, 0.66 / max(1, len(states) - 1))

    def draw(figure: Any) -> None:
        left, right = beside_the_paper(figure, part)
        for axes, source in ((left, "ours"), (right, "paper")):
            shown = {line["label"]: line["fraction"] for line in lines if line[source] is not None}
            at = {label: math.log(share) if joined else k for k, (label, share) in enumerate(shown.items())}
            for index, (state, same) in enumerate(states.items()):
                style = style_of(paper, same[0]["row"]) | {"label": state} | ({} if joined else {"linestyle": ""})
                found = {line["label"]: line[source] for line in same if line[source] is not None}
                if not found:
                    continue
                x = [at[label] + apart * (index - (len(states) - 1) / 2) for label in at]
                # No line is drawn across what was not measured.
                ours = [found.get(label, {"mean": math.nan}) for label in at] if source == "ours" else []
                values = [stats["mean"] for stats in ours] or [found.get(label, math.nan) for label in at]
                axes.errorbar(x, values, [stats.get("sd") or 0 for stats in ours] or None, **style)
                for x_of, stats in zip(x, ours, strict=False):  # none of the paper's
                    seeds = stats.get("values", []) if joined else []
                    axes.scatter([x_of] * len(seeds), seeds, s=9, color=style["color"], alpha=0.5, zorder=1)
            axes.set_xticks(list(at.values()), list(at))
            if joined:
                axes.set_xlabel("training data used")
            else:
                axes.set_xlim(-0.5, len(at) - 0.5)
                axes.grid(visible=False, axis="x")
        left.set_ylabel("top-1 accuracy (%)" if part["metric"] == "top1" else part["metric"])
        draw_legend(figure)

    listed = "; ".join(
        f"{line['label']}, {paper.title_of(line['row'])}: {measured(line['ours'], part['decimals'])}, "
        f"paper {number(line['paper'], part['decimals'])}"
        for line in done
    )
    dots = "; small dots are single seeds" if joined else ""
    return save_picture(
        folder / f"{part['figure']}-{part['id']}",
        draw,
        title=part["title"],
        caption=f"Mean over seeds with the standard deviation{dots}. The panels share no scale: only the order and the "
        "gaps can be compared.",
        alt=f"Chart of points, a group per label. {listed}.",
    )
