"""Detection and instance segmentation with any student as the backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import load_file

from vitutor_core.config import setting
from vitutor_core.data.build import build_data
from vitutor_core.data.detection.annotated import masks_module
from vitutor_core.distributed import choose_device
from vitutor_core.errors import ConfigError
from vitutor_core.evaluate.detection import found_in_first
from vitutor_core.files import write_json
from vitutor_core.hub import is_named
from vitutor_core.jobs.models import load_any
from vitutor_core.models.weights import load_strictly
from vitutor_core.progress import is_silent
from vitutor_core.recipe import recipe_path, resolve
from vitutor_core.report.detections import IMAGES, draw_detections
from vitutor_core.report.drawing import Picture
from vitutor_core.runs import RunDir
from vitutor_core.schema import DetectorConfig
from vitutor_core.terminal import say
from vitutor_core.train.detector import Detector
from vitutor_core.train.session import RunLabel, train

if TYPE_CHECKING:
    from vitutor_core.data.detection.load import AnnotatedEvalLoader

_OF_THE_IMAGES = ("img_size", "in_chans", "num_classes")


def train_detector(model: str, source: str, settings: tuple[str, ...], out: Path, command: str) -> None:
    """Train Mask R-CNN on a run, a weights file or a named model; write and print the average precision."""
    kind = "coco" if source.startswith("coco:") else "scenes"
    own = (setting("data.source", source), *_student(model), *settings)
    config = resolve(DetectorConfig, recipe_path("vitutor_core", f"detect/{kind}"), settings=own)
    masks_module()
    record = train(config, Detector.build, label=RunLabel("detect", "detect", kind, command), out=out)
    if is_silent():
        return  # the first of several processes writes
    figures = {name: value for name, value in record.metrics.items() if name != "images"}
    write_json(out / "ap.json", figures)
    for name, value in figures.items():
        say(f"{name:16}{value:6.2f}")
    say(str(_draw(config, out).path))


def _student(model: str) -> list[str]:
    """Return the settings that make the student the one of a run or of a weights file, or the model of a name."""
    path = Path(model)
    if not path.exists():
        if not is_named(model) and ("/" in model or model.endswith(".safetensors")):
            raise ConfigError(f"{path.absolute()}: there is no such run or file")
        return [setting("student.name", model)]
    card = load_any(path)[1]
    kwargs = {name: value for name, value in card.kwargs.items() if name not in _OF_THE_IMAGES}
    return [
        setting("student.name", card.name),
        setting("student.kwargs", kwargs),
        setting("student.weights", str(path.absolute())),
    ]


def _draw(config: DetectorConfig, out: Path) -> Picture:
    """Draw what the trained detector finds in the first evaluation images."""
    device = choose_device(config.runtime.device)
    data = build_data(config, device=device)
    method = Detector.build(config, data.info)
    load_strictly(method, load_file(RunDir(out).method), where=str(RunDir(out).method))
    loader = cast("AnnotatedEvalLoader", data.evaluation)
    return draw_detections(loader.source, found_in_first(method.to(device).detect, loader, IMAGES), out)
