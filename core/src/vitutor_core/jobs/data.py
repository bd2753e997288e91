"""Read and check every image of a data source."""

from __future__ import annotations

from pathlib import Path

from vitutor_core.data.check import check_annotated, check_source
from vitutor_core.data.detection.coco import write_coco
from vitutor_core.data.detection.open import open_annotated
from vitutor_core.files import write_json
from vitutor_core.progress import RunProgress
from vitutor_core.schema import DataConfig
from vitutor_core.terminal import printable, say


def check_data(config: DataConfig, out: Path | None, coco: Path | None) -> None:
    """Check a source and print what was found; write a manifest to ``out``, scenes in COCO's layout to ``coco``."""
    annotated = None if coco is None else open_annotated(config.source)
    with RunProgress(f"checking {config.source}", 1) as progress:
        if annotated is None:
            manifest = check_source(config, progress=progress.of)
        else:
            manifest = check_annotated(annotated, progress=progress.of)
    for name in ("train", "evaluation"):
        split = manifest[name]
        say(f"{name:12}{split['images']:>9} images, {split['per_class']['min']}-{split['per_class']['max']} per class")
    say(f"{'classes':12}{len(manifest['classes']):>9}; fingerprint {manifest['fingerprint'][:16]}")
    if config.holdout is not None:
        say(f"evaluated on a part of the training images, holdout={config.holdout}")
    elif manifest["evaluated_on"] is not None:
        say(printable(f"{'evaluated on':12} '{manifest['evaluated_on']}'"))
    for note in manifest["notes"]:
        say(printable(f"{'note':12}{note}"))
    if out is not None:
        write_json(out, manifest)
        say(f"manifest    {out}")
    if coco is not None and annotated is not None:
        write_coco(annotated, coco)
        say(f"coco:{coco}")
