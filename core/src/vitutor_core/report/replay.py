"""A step that was made again, as text and as its images."""

from __future__ import annotations

import math
from pathlib import Path

from torchvision.utils import save_image

from vitutor_core.files import atomic, write_csv
from vitutor_core.train.replay import Replayed

_SHOWN = 8
"""Images that are named in the text."""


def replay_lines(seen: Replayed, asked: int) -> list[str]:
    """Return what is shown of a step; ``asked`` is the one that was asked for."""
    gone = seen.step - seen.start
    before = f"{gone} step{'s' if gone > 1 else ''} after " if gone else "from "
    start = f"the checkpoint of step {seen.start}" if seen.start else "the initialisation"
    lines = [f"step {seen.step} of {seen.total}, epoch {seen.epoch}, lr {seen.lr:.4g}; {before}{start}"]
    if seen.step < asked:
        lines.append(f"step {asked} was asked for, but this one comes first and is not finite")
    lines += [f"note: {note}" for note in seen.notes]
    lines.append(f"{'':28}{'this step':>14}{'epoch, curves.csv':>20}{'epoch, replayed':>18}")
    for name, value in seen.terms.items():
        columns = [seen.recorded.get(name), seen.repeated.get(name)]
        line = f"{name:28}{value:14.6g}" + "".join(
            f"{'-' if mean is None else f'{mean:.6g}':>{width}}" for mean, width in zip(columns, (20, 18), strict=True)
        )
        lines.append(f"{line}  {_verdict(*columns)}".rstrip())
    if seen.crash is not None:
        lines.append(f"loss of this step when the run stopped: {seen.crash:.6g}")
    lines.append("gradient norms, before clipping")
    lines += [f"  {name:26}{norm:14.6g}" for name, norm in seen.norms.items()]
    if seen.not_finite:
        lines.append(f"not finite: {', '.join(seen.not_finite)}")
    lines.append(f"{len(seen.names)} images")
    lines += [f"  {name}  {where}" for where, name in seen.names[:_SHOWN]]
    if len(seen.names) > _SHOWN:
        lines.append(f"  ... and {len(seen.names) - _SHOWN} more; --images DIR lists all")
    return lines


def _verdict(recorded: float | None, repeated: float | None) -> str:
    if recorded is None or repeated is None:
        return ""
    same = recorded == repeated or (math.isnan(recorded) and math.isnan(repeated))
    return "the same" if same else f"differs by {repeated - recorded:.3g}"


def write_batch(seen: Replayed, folder: Path) -> list[str]:
    """Write the batch as one picture, in rows, and the list of its images in the same order."""
    sheet, table = (folder / f"step-{seen.step:08d}.{kind}" for kind in ("png", "csv"))
    with atomic(sheet) as partial:
        save_image(seen.images, partial, format="png", nrow=math.ceil(math.sqrt(len(seen.images))), padding=1)
    lines = ((position, name, where) for position, (where, name) in enumerate(seen.names))
    write_csv(table, [("position", "class", "image"), *lines])
    return [str(sheet), str(table)]
