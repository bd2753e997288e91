"""vitutor replay: make one step of a run again, to see where a NaN comes from or what a batch looked like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitutor_core.baseline import paper_of
from vitutor_core.cli import options
from vitutor_core.files import atomic, write_text
from vitutor_core.paper import load
from vitutor_core.terminal import printable

if TYPE_CHECKING:
    from vitutor_core.schema import RunConfig
    from vitutor_core.train.replay import Replayed

_SHOWN = 8


@click.command("replay")
@click.argument("run", type=options.PathOption(exists=True, file_okay=False))
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which step, counted from 0.")
@click.option(
    "--epoch", "whole_epoch", is_flag=True, help="Go on to the end of its epoch, to compare the means of curves.csv."
)
@click.option(
    "--images",
    type=options.PathOption(file_okay=False),
    help="Write the batch there: a contact sheet as the model saw it, and a list of all its images.",
)
@options.settings
def replay(run: Path, step: int, whole_epoch: bool, images: Path | None, settings: tuple[str, ...]) -> None:
    """Make a step of RUN again: its losses, gradient norms and images.

    RUN may be unfinished, killed, finished or published. The nearest checkpoint before the step is taken, else the
    initialisation. Of a run whose loss became NaN, the first step that is not finite is shown. --set is for runtime
    fields, such as weights that lie elsewhere now. Nothing is written into RUN; an epoch
    that is made again as a whole may add a teacher's logits to cache.folder.
    """
    from vitutor_core.train.origin import Origin
    from vitutor_core.train.replay import replay as replayed

    origin = Origin.read(run)
    paper = paper_of(origin.package)
    config: RunConfig = load(paper.config).from_mapping(origin.config, where=str(run)).changed(settings)
    seen = replayed(origin, config, load(paper.method).build, step, whole_epoch=whole_epoch)
    for line in _lines(seen, step):
        click.echo(printable(line))
    if images is not None:
        for path in _write_images(seen, images):
            click.echo(path)


def _lines(seen: Replayed, asked: int) -> list[str]:
    before = f"{seen.step - seen.start} steps after " if seen.step > seen.start else "from "
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
    return "the same" if recorded == repeated else f"differs by {repeated - recorded:.3g}"


def _write_images(seen: Replayed, folder: Path) -> list[str]:
    """Write the batch as one picture, in rows, and the list of its images in the same order."""
    import csv
    import io
    import math

    from torchvision.utils import save_image

    sheet, table = (folder / f"step-{seen.step:08d}.{kind}" for kind in ("png", "csv"))
    with atomic(sheet) as partial:
        save_image(seen.images, partial, format="png", nrow=math.ceil(math.sqrt(len(seen.images))), padding=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["position", "class", "image"])
    writer.writerows([position, name, where] for position, (where, name) in enumerate(seen.names))
    write_text(table, text.getvalue())
    return [str(sheet), str(table)]
