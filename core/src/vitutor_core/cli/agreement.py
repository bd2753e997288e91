"""vitutor agreement: on which images trained models agree, and what each of them says of a few."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.cli.analyze import data_of, first_seed, labels_of
from vitutor_core.cli.stage import left_out
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_json


@click.command("agreement")
@click.argument("models", nargs=-1, required=True, type=options.PathOption(exists=True))
@click.option("--beside", multiple=True, type=options.PathOption(exists=True), help="A model that is shown as well.")
@click.option("--image", "named", multiple=True, help="Show these files, folders or patterns, instead of a choice.")
@click.option("--source", help="Data source of the images, as data.source.  [default: that of the first run]")
@click.option("--images", type=click.IntRange(min=1), default=2000, show_default=True, help="Evaluation images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images are drawn.")
@click.option("--each", type=click.IntRange(1, 10), default=1, show_default=True, help="Images shown of each kind.")
@click.option("--top", type=click.IntRange(1, 10), default=4, show_default=True, help="Classes shown of an image.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@options.stage_plan
@options.out()
def agreement(
    models: tuple[Path, ...],
    beside: tuple[Path, ...],
    named: tuple[str, ...],
    source: str | None,
    images: int,
    seed: int,
    each: int,
    top: int,
    device: str,
    plan: Path | None,
    out: Path,
) -> None:
    """Find the images on which MODELS agree or complement each other, and draw what they say of a few.

    A model is a finished run, of a student or a teacher, an exported folder or a weights file. Shown are images of
    which all MODELS name the class, and images of which one alone does, model by model: the first ones in a random
    order of the evaluation split. Those given by --beside do not count in this choice.

    Writes agreement.svg and analysis.json into OUT.
    """
    if left_out(plan, "not compared", out):
        return
    paths = tuple(first_seed(path) for path in (*models, *beside))
    if len(models) < 2 and not named:
        raise ConfigError("agreement: give two models or more, of which some are right where others are not")
    from vitutor_core.analysis.agreement import Choice, Classifier, compare_named, compare_on
    from vitutor_core.analysis.agreement_figure import draw_agreement
    from vitutor_core.cli.models import load_any
    from vitutor_core.data import keyed
    from vitutor_core.distributed import choose_device
    from vitutor_core.evaluate.labelled import data_for, labelled_images
    from vitutor_core.evaluate.named import named_images

    chosen = choose_device(device)
    loaded = [load_any(path) for path in paths]
    models_of = [
        Classifier(label, model.to(chosen), card) for label, (model, card) in zip(labels_of(paths), loaded, strict=True)
    ]
    card = models_of[0].card
    if named:
        found, pictures = compare_named(models_of, named_images(named), top=top, device=chosen)
    else:
        data = data_of(paths) if source is None else data_for(card, source)
        split = labelled_images(data, card.class_names, source=source)
        drawn = keyed.permutation(len(split.labels), seed)[:images].tolist()
        choice = Choice(each, top)
        found, pictures = compare_on(models_of, split, drawn, judged=len(models), choice=choice, device=chosen)
    picture = draw_agreement(found["shown"], pictures, found["models"], out)
    entry = {"file": picture.path.name, "title": picture.title, "caption": picture.caption, "alt": picture.alt}
    write_json(out / "analysis.json", {**found, "pictures": [entry]})
    click.echo(str(picture.path))
