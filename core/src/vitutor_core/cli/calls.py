"""What the commands do, as Python calls; `vitutor_core.api` is their public name. Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitutor_core.baseline import paper_of
from vitutor_core.config import setting
from vitutor_core.paper import Paper, installed_paper
from vitutor_core.runs import RunDir, RunRecord

if TYPE_CHECKING:
    from vitutor_core.evaluate.predict import Prediction
    from vitutor_core.train.track import Callback

Settings = Mapping[str, Any] | Sequence[str]
"""Values by the dotted path of their field, or texts as --set takes them."""


def train(
    paper: str | Paper,
    out: Path | str,
    *,
    scale: str = "digits",
    recipe: Path | None = None,
    preset: str | None = None,
    row: str | None = None,
    settings: Settings = (),
    teachers: Path | None = None,
    callbacks: Sequence[Callback] = (),
    command: str = "vitutor_core.api.train",
) -> RunRecord:
    """Train one run of a paper into the folder ``out``, its teachers first; the same call again resumes it.

    Args:
        paper: the name of an installed package, such as "dearkd".
        out: folder of the run.
        scale: whose recipe is taken: digits, small, cifar100 or imagenet.
        recipe: a recipe file, instead of the scale's.
        preset: a preset of the recipe.
        row: a row of the paper's tables.
        settings: fields of the config that differ, such as ``{"train.epochs": 5}``.
        teachers: folder of trained teachers; by default ``out/teachers``.
        callbacks: functions of the number of updates and of losses and metrics by name; see `train.track`.
        command: what the record names as the command.

    Raises:
        VitutorError: in one line, whatever a user can change.

    """
    from vitutor_core.cli.train import Asked, train_row

    out = Path(out)
    asked = Asked(_paper(paper), scale, recipe, preset, row, texts(settings), command)
    return train_row(asked, out, teachers or out / "teachers", callbacks)


def evaluate(
    run: Path | str,
    *,
    source: str | None = None,
    split: str | None = None,
    ema: bool = False,
    speed: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure a finished run again, from its weights, also class by class; return figures by name.

    ``source`` and ``split`` choose other images, ``ema`` the averaged weights; ``out`` is a folder for the confusion
    matrix.
    """
    from vitutor_core.cli.by_class import evaluate_by_class

    paper = paper_of(RunRecord.read(Path(run)).paper)
    return evaluate_by_class(paper, Path(run), out, source=source, split=split, ema=ema, speed=speed)


def predict(
    model: Path | str,
    images: Iterable[str | Path],
    *,
    top: int = 5,
    ema: bool = False,
    batch_size: int = 256,
    device: str = "auto",
) -> Iterator[Prediction]:
    """Yield the classes of images: files, folders or patterns, by a run, an exported folder or a weights file.

    An image that cannot be read has a ``problem`` instead of classes.
    """
    from vitutor_core.evaluate.named import named_images

    return predict_files(model, named_images(map(str, images)), top=top, ema=ema, batch_size=batch_size, device=device)


def predict_files(
    model: Path | str, paths: Sequence[Path], *, top: int, ema: bool, batch_size: int, device: str
) -> Iterator[Prediction]:
    """Do what `predict` does, of image files."""
    from vitutor_core.cli.models import load_any
    from vitutor_core.distributed import choose_device, effective_precision
    from vitutor_core.evaluate.predict import predict as predictions

    chosen = choose_device(device)
    network, card = load_any(Path(model), ema=ema)
    precision = effective_precision(_precision(Path(model)), chosen)
    return predictions(network, card, paths, top=top, batch_size=batch_size, device=chosen, precision=precision)


def texts(settings: Settings) -> tuple[str, ...]:
    """Return settings as --set takes them."""
    if isinstance(settings, Mapping):
        return tuple(setting(path, value) for path, value in settings.items())
    return tuple(settings)


def _paper(paper: str | Paper) -> Paper:
    return paper if isinstance(paper, Paper) else installed_paper(paper)


def _precision(model: Path) -> Literal["fp32", "bf16"]:
    """Return the precision in which a run is evaluated; a file does not say it."""
    if not RunDir(model).metrics.is_file():
        return "fp32"
    precision = RunRecord.read(model).config.get("train", {}).get("precision")
    return "bf16" if precision == "bf16" else "fp32"
