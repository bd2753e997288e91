"""vitutor analyze: what the layers of one or two trained models have in common, and where their heads look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitutor_core.cli import options
from vitutor_core.cli.stage import left_out
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_json
from vitutor_core.runs import RunDir, RunRecord, weights_file
from vitutor_core.schema import DataConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from vitutor_core.models.weights import ModelCard


@click.command("analyze")
@click.argument("models", nargs=-1, required=True, type=options.PathOption())
@click.option("--source", help="Data source of the images, as data.source.  [default: that of the first run]")
@click.option("--images", type=click.IntRange(min=4), default=1152, show_default=True, help="Evaluation images.")
@click.option("--batch", type=click.IntRange(min=4), default=128, show_default=True, help="Images per CKA batch.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Which images are drawn.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--released",
    is_flag=True,
    help="As released with arXiv 2205.14443: units, epsilon, last norm, images.",
)
@click.option("--true-nyquist", is_flag=True, help="Fourier curves up to the highest frequency.")
@options.stage_plan
@options.out()
def analyze(
    models: tuple[Path, ...],
    source: str | None,
    images: int,
    batch: int,
    seed: int,
    device: str,
    released: bool,
    true_nyquist: bool,
    plan: Path | None,
    out: Path,
) -> None:
    """Compare the layers of one or two MODELS and draw their attention.

    A model is a finished run of any paper, an exported folder, a weights file, also one of `vitutor convert`, or a
    timm name with weights, such as vit_base_patch16_224.mae.

    Writes cka.svg, fourier.svg, attention-<model>.svg and analysis.json into OUT. With two models, the second is the
    reference. Images are drawn at random from the evaluation split.
    """
    if left_out(plan, "not analysed", out):
        return
    models = tuple(_first_seed(path) for path in models)
    if len(models) > 2:
        raise ConfigError(f"analyze: {len(models)} models given; give one, or two to compare")
    from vitutor_core.analysis.analyse import Quirks, analyse
    from vitutor_core.analysis.figures import draw_analysis
    from vitutor_core.cli.models import load_any, load_named
    from vitutor_core.distributed import choose_device

    chosen = choose_device(device)
    loaded = [load_any(path) if path.exists() else load_named(path) for path in models]
    networks = [(label, model.to(chosen)) for label, (model, _) in zip(_labels(models), loaded, strict=True)]
    cards = [card for _, card in loaded]
    data = _batches(source or _source_of(models), cards, images=images, batch=batch, seed=seed, shuffle=not released)
    moved = (tuple(part.to(chosen) for part in parts) for parts in data)
    found = analyse(networks, moved, Quirks(released=released, true_nyquist=true_nyquist))
    pictures = draw_analysis(found, out)
    names = [{"file": p.path.name, "title": p.title, "caption": p.caption, "alt": p.alt} for p in pictures]
    write_json(out / "analysis.json", {**found, "pictures": names})
    for picture in pictures:
        click.echo(str(picture.path))


def _first_seed(path: Path) -> Path:
    """Return the run of the lowest seed where ``path`` is what `reproduce` published of a row."""
    if not path.exists():
        return path  # a name of timm
    seeds = [run for run in path.glob("seed-*") if run.name.removeprefix("seed-").isdecimal()]
    if not seeds or weights_file(path).is_file():
        return path
    return min(seeds, key=lambda run: int(run.name.removeprefix("seed-")))


def _labels(paths: tuple[Path, ...]) -> list[str]:
    """Name each run by its row and seed, and a file by its name; both models get different names."""
    labels = []
    for path in paths:
        record = _record(path)
        name = path.stem if path.exists() else path.name
        labels.append(name if record is None else f"{record.row}, seed {record.seed}")
    return labels if len(set(labels)) == len(labels) else [f"{label} ({n})" for n, label in enumerate(labels, start=1)]


def _record(path: Path) -> RunRecord | None:
    return RunRecord.read(path) if RunDir(path).metrics.exists() else None


def _source_of(paths: tuple[Path, ...]) -> str:
    """Return the source that the first run among the models was trained on."""
    for path in paths:
        record = _record(path)
        if record is not None:
            return DataConfig.from_mapping(record.config.get("data", {}), where=str(RunDir(path).metrics)).source
    raise ConfigError(f"{paths[0]}: no metrics.json says which images it knows; give --source")


def _batches(
    source: str, cards: list[ModelCard], *, images: int, batch: int, seed: int, shuffle: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same images for each model, in its size and normalisation; an incomplete last batch is left out."""
    import numpy as np
    import torch

    from vitutor_core.data import keyed
    from vitutor_core.data.augment.mixing import Normalise
    from vitutor_core.data.loaders.resident import load_eval
    from vitutor_core.data.sources.open import open_source

    cpu = torch.device("cpu")
    split = open_source(DataConfig(source=source, image_size=cards[0].image_size)).evaluation
    count = len(split.labels)
    order = keyed.permutation(count, seed) if shuffle else np.arange(count)
    chosen = order[: min(images, count)]
    size = min(batch, len(chosen))
    for start in range(0, len(chosen) - size + 1, size):
        yield tuple(
            Normalise(card.mean, card.std, cpu)(
                load_eval(
                    split,
                    chosen[start : start + size],
                    DataConfig(source=source, image_size=card.image_size, decoded_gb=0),
                    device=cpu,
                )
            )
            for card in cards
        )
