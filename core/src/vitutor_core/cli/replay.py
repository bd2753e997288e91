"""vitutor replay: make one step of a run again, to see where a NaN comes from or what a batch looked like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitutor_core.baseline import paper_of
from vitutor_core.cli import options
from vitutor_core.paper import load
from vitutor_core.terminal import printable

if TYPE_CHECKING:
    from vitutor_core.schema import RunConfig


@click.command("replay")
@click.argument("run", type=options.PathOption(exists=True, file_okay=False))
@click.option("--step", type=click.IntRange(min=0), required=True, help="Which step, counted from 0.")
@click.option(
    "--epoch", "whole_epoch", is_flag=True, help="Go on to the end of its epoch, to compare the means of curves.csv."
)
@options.folder("--images", "Write the batch there: a contact sheet as the model saw it, and a list of all its images.")
@options.settings
def replay(run: Path, step: int, whole_epoch: bool, images: Path | None, settings: tuple[str, ...]) -> None:
    """Make a step of RUN again: its losses, gradient norms and images.

    RUN may be unfinished, killed, finished or published. The nearest checkpoint before the step is taken, else the
    initialisation. Of a run whose loss became NaN, the first step that is not finite is shown. --set is for runtime
    fields, such as weights that lie elsewhere now. Nothing is written into RUN; an epoch
    that is made again as a whole may add a teacher's logits to cache.folder.
    """
    from vitutor_core.report.replay import replay_lines, write_batch
    from vitutor_core.train.origin import Origin
    from vitutor_core.train.replay import replay as replayed

    origin = Origin.read(run)
    paper = paper_of(origin.package)
    config: RunConfig = load(paper.config).from_mapping(origin.config, where=str(run)).changed(settings)
    seen = replayed(origin, config, load(paper.method).build, step, whole_epoch=whole_epoch)
    for line in replay_lines(seen, step):
        click.echo(printable(line))
    if images is not None:
        for path in write_batch(seen, images):
            click.echo(path)
