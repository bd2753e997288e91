"""Store teachers' logits ahead of the runs that learn from them."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.jobs.train import Asked
from vitutor_core.paper import load


@click.command("cache")
@click.argument("paper")
@options.asked()
@options.own_teachers
def cache(asked: Asked, teachers: Path) -> None:
    """Store in cache.folder what the teachers say of the batches of a run of PAPER.

    Runs with the same images, augmentation, batch size and seed of the views then need no teacher for its logits; so
    do those of other rows and, with data.view_seed set, of other seeds. Interrupted, the command goes on after the
    last whole epoch.
    """
    config, method = asked.config(), asked.paper.method
    if config.cache.folder is None:
        config = config.changed(["cache.folder=cache"])
    from vitutor_core.jobs.teacher import with_teachers
    from vitutor_core.train.ahead import store_logits

    config = with_teachers(config, asked.scale, teachers, method=method)

    def starting(epochs: int, gigabytes: float) -> None:
        click.echo(f"{epochs} epochs, at most {gigabytes:.3g} GB in {config.cache.folder}")

    def epoch_done(epoch: int) -> None:
        click.echo(f"epoch {epoch + 1}/{config.train.epochs}", err=True)

    facts = store_logits(config, load(method).build, starting=starting, epoch_done=epoch_done)
    kept = facts["epochs_written"] + facts["epochs_read"]
    click.echo(f"{kept} epochs stored ({facts['epochs_read']} were there), {facts['epochs_computed']} beyond max_gb")
