"""Say which classes images show, by any trained model. Imports nothing heavy itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vitutor_core.cli import options
from vitutor_core.errors import DataError, ResourceError
from vitutor_core.jobs.models import predict_files
from vitutor_core.paper import Paper, load
from vitutor_core.terminal import printable

if TYPE_CHECKING:
    from vitutor_core.evaluate.predict import Prediction


def predict_command(paper: Paper | None = None) -> click.Command:
    """Return the command, for the models of a ``paper`` or for all."""

    @click.command("predict")
    @click.argument("model", metavar="RUN|FILE", type=options.PathOption(exists=True))
    @click.argument("images", nargs=-1, required=True)
    @click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Classes per image.")
    @click.option("--csv", "table", type=options.PathOption(dir_okay=False), help="Write there, a line for each image.")
    @options.ema
    @click.option("--batch", type=click.IntRange(1, 2**20), default=256, show_default=True, help="Images at once.")
    @options.device
    def predict(
        model: Path, images: tuple[str, ...], top: int, table: Path | None, ema: bool, batch: int, device: str
    ) -> None:
        """Name the classes of IMAGES: files, folders with all below them, or patterns such as 'new/*.jpg'.

        The model is a finished run, of a student or a teacher, an exported folder or a weights file; images are
        prepared as in its evaluation. Those that cannot be read are named at the end, and the exit code is 3 then.
        """
        from vitutor_core.evaluate.named import named_images
        from vitutor_core.report.predictions import prediction_line, write_predictions

        paths = named_images(images)
        if table is not None:
            _make_folder(table.parent)
        if paper is not None:
            load(paper.method)  # registers the paper's models with timm
        found = predict_files(model, paths, top=top, ema=ema, batch_size=batch, device=device)
        from vitutor_core.train.progress import RunProgress

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
                    click.echo(prediction_line(prediction))
                progress.of(done, len(paths))
        if table is not None:
            write_predictions(table, lines, max((len(line.classes) for line in lines), default=top))
            click.echo(f"{len(lines)} images; {table}")
        for problem in problems:
            click.echo(f"error: {printable(problem)}", err=True)
        if problems:
            raise DataError(f"{len(problems)} of {len(paths)} images cannot be read")

    return predict


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(f"--csv: cannot make {folder.absolute()} ({error.strerror}); choose another") from None
