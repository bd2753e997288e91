"""vitutor detect: detection and instance segmentation with any student as the backbone."""

from __future__ import annotations

from pathlib import Path

import click

from vitutor_core.cli import options
from vitutor_core.terminal import command_line


@click.command("detect")
@click.argument("model")
@click.option("--source", default="scenes", show_default=True, help="scenes, or coco:FOLDER in COCO's layout.")
@options.settings
@options.seed
@options.out
def detect(model: str, source: str, settings: tuple[str, ...], seed: int | None, out: Path) -> None:
    """Train Mask R-CNN on MODEL and measure the average precision of its boxes and masks.

    MODEL is a finished run or a weights file of any paper, whose weights are fine-tuned, or the timm name of a model
    that starts fresh. OUT gets ap.json and detections.svg beside the files of a run.
    """
    from vitutor_core.jobs.detect import train_detector

    train_detector(model, source, options.with_seed(settings, seed), out, command_line("vitutor"))
