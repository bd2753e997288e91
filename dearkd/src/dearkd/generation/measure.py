"""Measure sets of images and write what the report reads: a result per set, in the layout of a training run's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from dearkd.generation.config import GenerationConfig
from dearkd.generation.diversity import (
    feature_distance,
    lpips_distance,
    lpips_if_available,
    mean_distance,
    same_class_pairs,
)
from dearkd.generation.generate import MANIFEST, read_record
from vitutor_core.config import setting
from vitutor_core.data.augment.resample import eval_fit
from vitutor_core.data.sources.open import open_source
from vitutor_core.distributed import choose_device
from vitutor_core.files import write_text
from vitutor_core.models.weights import load_model, weights_sha256
from vitutor_core.runs import RunDir, RunRecord, weights_file
from vitutor_core.schema import DataConfig


def measure_sets(
    config: GenerationConfig,
    data: DataConfig,
    images: Path,
    *,
    features: Path,
    lpips: str | None,
    out: Path,
    scale: str,
    command: str,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure the real training images and every set below ``images``; yield names and metrics as they are written.

    ``feature_distance`` is the mean distance of same-class pairs in the feature space of the run ``features``,
    ``lpips`` their mean LPIPS, ``teacher_top1`` the share of the images, in percent, that the teacher puts into their
    class.
    """
    device = choose_device(config.runtime.device)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    model, card = load_model(weights_file(features))
    judge = {"name": card.name, "sha256": weights_sha256(model.state_dict()), "top1": card.metrics.get("top1")}
    distances = {"feature_distance": feature_distance(model.to(device).eval(), card.mean, card.std)}
    perceptual = lpips_if_available(device) if lpips == "auto" else lpips_distance(lpips, device) if lpips else None
    if perceptual is not None:
        distances["lpips"] = perceptual
    fit = eval_fit(data.changed([f"image_size={card.image_size}"]))
    sets = {"real": None} | {path.parent.name: path.parent for path in sorted(images.glob(f"*/{MANIFEST}"))}
    for name, folder in sets.items():
        started = time.monotonic()
        where = [] if folder is None else [setting("train_from", str(folder.absolute()))]
        split = open_source(data.changed(where)).train
        pairs = same_class_pairs(split.labels, config.diversity_pairs, config.seed)
        metrics = {metric: mean_distance(split, pairs, fit, distance, device) for metric, distance in distances.items()}
        made = read_record(folder) if folder is not None else None
        if made is not None:
            metrics["teacher_top1"] = made["teacher_accuracy"]
        record = RunRecord.of(
            paper="dearkd",
            row=f"images_{name}",
            scale=scale,
            seed=config.seed,
            metrics=metrics,
            train_images=len(split.labels),
            fingerprint=made["fingerprint"] if made is not None else split.content_hash[:16],
            data_fingerprint=split.content_hash,
            teachers={"features": judge} | (made["networks"] if made is not None else {}),
            command=command,
            config=made["config"] if made is not None else {"data": data.model_dump(mode="json")},
            seconds=round(time.monotonic() - started, 1),
        )
        run = RunDir(out / record.row / f"seed-{config.seed}")
        write_text(run.curves, "epoch\n")  # it has none
        record.write(run.path)
        yield name, metrics
