"""Find the images on which trained models agree or complement each other, and draw what they say of a few."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitutor_core.analysis.agreement import Choice, Classifier, compare_named, compare_on
from vitutor_core.analysis.agreement_figure import draw_agreement
from vitutor_core.data import keyed
from vitutor_core.distributed import choose_device
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.labelled import data_for, labelled_images
from vitutor_core.evaluate.named import named_images
from vitutor_core.jobs.analyse import data_of, first_seed, labels_of, other_source, write_analysis
from vitutor_core.jobs.models import load_any
from vitutor_core.terminal import say


def agreement_of(
    models: Sequence[Path],
    out: Path,
    *,
    beside: Sequence[Path],
    named: Sequence[str],
    source: str | None,
    images: int,
    seed: int,
    each: int,
    top: int,
    device: str,
) -> list[Path]:
    """Write ``analysis.json`` and the figure of ``models``, and of those ``beside`` them, into ``out``; return it.

    ``images`` are drawn by ``seed`` from the evaluation split of ``source``, and ``each`` of a kind are shown with
    their ``top`` classes; or the files ``named``. Where there is nothing to show, it says what was found, and draws
    nothing.
    """
    if len(models) < 2 and not named:
        raise ConfigError("agreement: give two models or more, of which some are right where others are not")
    paths = [first_seed(path) for path in (*models, *beside)]
    if missing := [path for path in paths if not path.exists()]:
        raise ConfigError(f"{missing[0].absolute()}: there is no such run or file")
    chosen = choose_device(device)
    loaded = [load_any(path) for path in paths]
    classifiers = [
        Classifier(label, model.to(chosen), card) for label, (model, card) in zip(labels_of(paths), loaded, strict=True)
    ]
    if named:
        found, pictures = compare_named(classifiers, named_images(named), top=top, device=chosen)
    else:
        card = classifiers[0].card
        source = other_source(source, paths)
        data = data_of(paths) if source is None else data_for(card, source)
        split = labelled_images(data, card.class_names, source=source)
        drawn = keyed.permutation(len(split.labels), seed)[:images].tolist()
        choice = Choice(each, top)
        found, pictures = compare_on(classifiers, split, drawn, judged=len(models), choice=choice, device=chosen)
    if pictures:
        return write_analysis(out, found, [draw_agreement(found["shown"], pictures, found["models"], out)])
    judged = found.get("judged", found["all"])
    right = ", ".join(f"{label} is right on {share:.1f} %" for label, share in judged["top1"].items())
    say(
        f"nothing to draw: on none of {judged['images']} images are all models right, or one alone ({right}, none of "
        f"them on {judged['none_right']:.1f} %); the numbers are in {out / 'analysis.json'}"
    )
    return write_analysis(out, found, [])
