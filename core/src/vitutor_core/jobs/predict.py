"""Say which classes images show, by any trained model. Imports nothing heavy itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vitutor_core.data.sources.locate import without_advice
from vitutor_core.errors import DataError, ResourceError
from vitutor_core.files import write_csv
from vitutor_core.jobs.models import load_any
from vitutor_core.paper import Paper, load
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.terminal import printable, say

if TYPE_CHECKING:
    from vitutor_core.evaluate.predict import Prediction


def predict_files(
    model: Path | str, paths: Sequence[Path], *, top: int, ema: bool, batch_size: int, device: str
) -> Iterator[Prediction]:
    """Do what `api.predict` does, of image files."""
    from vitutor_core.distributed import choose_device, effective_precision
    from vitutor_core.evaluate.predict import predict as predictions

    chosen = choose_device(device)
    network, card = load_any(Path(model), ema=ema)
    precision = effective_precision(_precision(Path(model)), chosen)
    return predictions(network, card, paths, top=top, batch_size=batch_size, device=chosen, precision=precision)


def _precision(model: Path) -> Literal["fp32", "bf16"]:
    """Return the precision in which a run is evaluated; a file does not say it."""
    if not RunDir(model).metrics.is_file():
        return "fp32"
    precision = RunRecord.read(model).config.get("train", {}).get("precision")
    return "bf16" if precision == "bf16" else "fp32"


def predict_images(
    paper: Paper | None,
    model: Path,
    images: Sequence[str],
    *,
    top: int,
    table: Path | None,
    ema: bool,
    batch: int,
    device: str,
) -> None:
    """Print the classes of images, or write them to a ``table``; ``paper`` is one whose models may be asked.

    Raises `DataError` at the end where some cannot be read.
    """
    from vitutor_core.evaluate.named import named_images

    paths = named_images(images)
    if table is not None:
        try:
            table.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResourceError(
                f"--csv: cannot make {table.parent.absolute()} ({error.strerror}); choose another"
            ) from None
    if paper is not None:
        load(paper.method)  # registers the paper's models with timm
    found = predict_files(model, paths, top=top, ema=ema, batch_size=batch, device=device)
    from vitutor_core.progress import RunProgress

    lines: list[Prediction] = []
    problems = []
    shows_progress = len(paths) > batch and (table is not None or not sys.stdout.isatty())
    with RunProgress("predicting", len(paths), enabled=shows_progress) as progress:
        for done, prediction in enumerate(found, start=1):
            if prediction.problem is not None:
                problems.append(prediction.problem)
            elif table is not None:
                lines.append(prediction)
            else:
                shown = ", ".join(f"{name} {100 * share:.1f} %" for name, share in prediction.classes)
                say(printable(f"{prediction.path}: {shown}"))
            progress.of(done, len(paths))
    if table is not None:
        _write(table, lines, max((len(line.classes) for line in lines), default=top))
        say(f"{len(lines)} images; {table}")
    if problems:
        unread, advice = without_advice(problems)
        failed = DataError(f"{len(problems)} of {len(paths)} images cannot be read{advice}")
        for line in unread:
            failed.add_note(line)
        raise failed


def _write(table: Path, found: Iterable[Prediction], top: int) -> None:
    """Write a line for each image, with ``top`` classes and their probabilities."""
    lines = [["image", *(f"{name}_{rank}" for rank in range(1, top + 1) for name in ("class", "probability"))]]
    for prediction in found:
        image = os.fsencode(prediction.path).decode(errors="backslashreplace")
        classes = (value for name, share in prediction.classes for value in (name, f"{share:.6g}"))
        lines.append([image, *classes])
    write_csv(table, lines)
