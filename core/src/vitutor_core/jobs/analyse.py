"""Compare the layers of one or two trained models, on images that the first of them knows, and draw the figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitutor_core.analysis.analyse import Quirks, analyse
from vitutor_core.analysis.figures import draw_analysis
from vitutor_core.data import keyed
from vitutor_core.data.augment.mixing import Normalise
from vitutor_core.data.loaders.resident import load_eval
from vitutor_core.data.sources.open import open_source
from vitutor_core.data.types import Split
from vitutor_core.distributed import choose_device
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.labelled import unless_own
from vitutor_core.files import write_json
from vitutor_core.jobs.models import load_any, load_named
from vitutor_core.models.weights import ModelCard
from vitutor_core.report.drawing import Picture
from vitutor_core.runs import RunDir, RunRecord, weights_file
from vitutor_core.schema import DataConfig


def analyse_models(
    paths: Sequence[Path],
    out: Path,
    *,
    source: str | None,
    images: int,
    batch: int,
    seed: int,
    device: str,
    released: bool,
    true_nyquist: bool,
) -> list[Path]:
    """Write ``analysis.json`` and the figures of one or two models into ``out``; return the figures.

    ``images`` are drawn by ``seed`` from the evaluation split of ``source``, ``batch`` at a time; for the last two, see
    `Quirks`.
    """
    models = tuple(first_seed(path) for path in paths)
    if len(models) > 2:
        raise ConfigError(f"analyze: {len(models)} models given; give one, or two to compare")
    chosen = choose_device(device)
    loaded = [load_any(path) if path.exists() else load_named(path) for path in models]
    networks = [(label, model.to(chosen)) for label, (model, _) in zip(labels_of(models), loaded, strict=True)]
    cards = [card for _, card in loaded]
    source = other_source(source, models)
    known = data_of(models) if source is None else DataConfig(source=source, image_size=cards[0].image_size)
    split = open_source(known.model_copy(update={"train_from": None})).evaluation
    data = _batches(split, cards, images=images, batch=batch, seed=seed, shuffle=not released)
    quirks = Quirks(released=released, true_nyquist=true_nyquist)
    found = analyse(networks, (tuple(part.to(chosen) for part in parts) for parts in data), quirks)
    return write_analysis(out, found, draw_analysis(found, out))


def write_analysis(out: Path, found: Mapping[str, Any], pictures: Sequence[Picture]) -> list[Path]:
    """Write ``analysis.json``, of which a report takes the figures; return these."""
    names = [{"file": p.path.name, "title": p.title, "caption": p.caption, "alt": p.alt} for p in pictures]
    write_json(out / "analysis.json", {**found, "pictures": names})
    return [picture.path for picture in pictures]


def first_seed(path: Path) -> Path:
    """Return the run of the lowest seed where ``path`` is what `reproduce` published of a row."""
    if not path.exists():
        return path  # a name of timm
    seeds = [run for run in path.glob("seed-*") if run.name.removeprefix("seed-").isdecimal()]
    if not seeds or weights_file(path).is_file():
        return path
    return min(seeds, key=lambda run: int(run.name.removeprefix("seed-")))


def labels_of(paths: Sequence[Path]) -> list[str]:
    """Name each run by its row and seed, and a file by its name; all get different names."""
    labels = []
    for path in paths:
        record = _record(path)
        name = path.stem if path.exists() else path.name
        labels.append(name if record is None else f"{record.row}, seed {record.seed}")
    return labels if len(set(labels)) == len(labels) else [f"{label} ({n})" for n, label in enumerate(labels, start=1)]


def _record(path: Path) -> RunRecord | None:
    return RunRecord.read(path) if RunDir(path).metrics.exists() else None


def other_source(source: str | None, paths: Sequence[Path]) -> str | None:
    """Return None where ``source`` is that of the first run among the models; see `unless_own`."""
    known = _data_of(paths)
    return source if known is None else unless_own(source, known)


def data_of(paths: Sequence[Path]) -> DataConfig:
    """Return the images that the first run among the models was trained on; raises `ConfigError` if none is a run."""
    known = _data_of(paths)
    if known is None:
        raise ConfigError(f"{paths[0]}: no metrics.json says which images it knows; give --source")
    return known


def _data_of(paths: Sequence[Path]) -> DataConfig | None:
    for path in paths:
        record = _record(path)
        if record is not None:
            return DataConfig.from_mapping(record.config.get("data", {}), where=str(RunDir(path).metrics))
    return None


def _batches(
    split: Split, cards: list[ModelCard], *, images: int, batch: int, seed: int, shuffle: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same images for each model, in its size and normalisation; an incomplete last batch is left out."""
    cpu = torch.device("cpu")
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
                    DataConfig(image_size=card.image_size, decoded_gb=0),
                    device=cpu,
                )
            )
            for card in cards
        )
