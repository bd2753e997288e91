"""vitutor detect: detection and instance segmentation with any student as the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from vitutor_core.cli import options
from vitutor_core.config import setting
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_json
from vitutor_core.hub import is_named
from vitutor_core.recipe import recipe_path, resolve
from vitutor_core.runs import RunDir
from vitutor_core.schema import DetectorConfig
from vitutor_core.terminal import command_line

if TYPE_CHECKING:
    from vitutor_core.data.detection.load import AnnotatedEvalLoader
    from vitutor_core.report.drawing import Picture

_OF_THE_IMAGES = ("img_size", "in_chans", "num_classes")


@click.command("detect")
@click.argument("model")
@click.option("--source", default="scenes", show_default=True, help="scenes, or coco:FOLDER in COCO's layout.")
@options.settings
@options.seed
@options.out()
def detect(model: str, source: str, settings: tuple[str, ...], seed: int | None, out: Path) -> None:
    """Train Mask R-CNN on MODEL and measure the average precision of its boxes and masks.

    MODEL is a finished run or a weights file of any paper, whose weights are fine-tuned, or the timm name of a model
    that starts fresh. OUT gets ap.json and detections.svg beside the files of a run.
    """
    kind = "coco" if source.startswith("coco:") else "scenes"
    own = (setting("data.source", source), *_student(model), *options.with_seed(settings, seed))
    config = resolve(DetectorConfig, recipe_path("vitutor_core", f"detect/{kind}"), settings=own)
    from vitutor_core.data.detection.annotated import masks_module
    from vitutor_core.train.detector import Detector
    from vitutor_core.train.progress import is_silent
    from vitutor_core.train.session import RunLabel, train

    masks_module()
    label = RunLabel("detect", "detect", kind, command_line("vitutor"))
    record = train(config, Detector.build, label=label, out=out)
    if is_silent():
        return  # the first of several processes writes
    figures = {name: value for name, value in record.metrics.items() if name != "images"}
    write_json(out / "ap.json", figures)
    for name, value in figures.items():
        click.echo(f"{name:16}{value:6.2f}")
    click.echo(str(_draw(config, out).path))


def _student(model: str) -> list[str]:
    """Return the settings that make the student the one of a run or of a weights file, or the model of a name."""
    path = Path(model)
    if not path.exists():
        if not is_named(model) and ("/" in model or model.endswith(".safetensors")):
            raise ConfigError(f"{path.absolute()}: there is no such run or file")
        return [setting("student.name", model)]
    from vitutor_core.jobs.models import load_any

    card = load_any(path)[1]
    kwargs = {name: value for name, value in card.kwargs.items() if name not in _OF_THE_IMAGES}
    return [
        setting("student.name", card.name),
        setting("student.kwargs", kwargs),
        setting("student.weights", str(path.absolute())),
    ]


def _draw(config: DetectorConfig, out: Path) -> Picture:
    """Draw what the trained detector finds in the first evaluation images."""
    from safetensors.torch import load_file

    from vitutor_core.data.build import build_data
    from vitutor_core.distributed import choose_device
    from vitutor_core.evaluate.detection import found_in_first
    from vitutor_core.models.weights import load_strictly
    from vitutor_core.report.detections import IMAGES, draw_detections
    from vitutor_core.train.detector import Detector

    device = choose_device(config.runtime.device)
    data = build_data(config, device=device)
    method = Detector.build(config, data.info)
    load_strictly(method, load_file(RunDir(out).method), where=str(RunDir(out).method))
    loader = cast("AnnotatedEvalLoader", data.evaluation)
    return draw_detections(loader.source, found_in_first(method.to(device).detect, loader, IMAGES), out)
