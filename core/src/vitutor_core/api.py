"""What the commands do, as Python calls. Imports nothing heavy itself.

from vitutor_core.api import compare, evaluate, predict, train

record = train("dearkd", "runs/first", scale="own", settings={"data.source": "folder:my_images"})
print(evaluate("runs/first")["balanced_top1"])
for prediction in predict("runs/first", ["new_images"]):
    print(prediction.path, prediction.classes[0])
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitutor_core.baseline import paper_of
from vitutor_core.compare.papers import compare_papers as compare
from vitutor_core.jobs.predict import predict_files
from vitutor_core.jobs.train import Asked, Settings, texts, train_row
from vitutor_core.paper import Paper, installed_paper
from vitutor_core.recipe import default_scale
from vitutor_core.runs import RunRecord

if TYPE_CHECKING:
    from vitutor_core.evaluate.predict import Prediction
    from vitutor_core.train.track import Callback

__all__ = ["compare", "evaluate", "predict", "train"]


def train(
    paper: str | Paper,
    out: Path | str,
    *,
    scale: str | None = None,
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
        scale: whose recipe is taken, as --scale of the command: digits, ..., or own, sized to images of one's own.
            By default digits, or with ``recipe``, own.
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
    out = Path(out)
    asked = Asked(
        paper if isinstance(paper, Paper) else installed_paper(paper),
        scale or default_scale(recipe),
        recipe,
        preset,
        row,
        texts(settings),
        command,
    )
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
    from vitutor_core.jobs.evaluate import evaluate_by_class

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
