"""Read the records of evaluated runs: ``<root>/<paper>/<row>/seed-<n>/{metrics.json, curves.csv}``."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitutor_core.config import differences, dotted, runtime_paths
from vitutor_core.errors import DataError
from vitutor_core.runs import Record, RunDir, RunRecord
from vitutor_core.schema import RunConfig

Curves = dict[str, list[float | None]]
"""Column name to one value per epoch; None where nothing was measured."""

# The seeds of a row may differ in these fields and in nothing else. Where a seed starts from another row's students
# (student.weights), it starts from that of the same number. data.train_from is no such field: its path alone says which
# images it names.
_FREE_FIELDS = frozenset({"seed", "data.subset_seed", *runtime_paths(RunConfig)} - {"data.train_from"})


class Shifted(Record):
    """What a run was measured at out of distribution."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training run: its result, its learning curves, and the folder they came from."""

    folder: Path
    result: RunRecord
    curves: Curves


def load_results(root: Path, paper: str) -> dict[str, list[Run]]:
    """Return the runs of ``paper`` under ``root`` by row, ordered by row name and seed.

    Raises `DataError` if there are none, if a file is missing or broken, if a result lies in the folder of another
    row or seed, or if results that would be averaged are not comparable: other scales, other configs.
    """
    pattern = re.compile(r"seed-\d+")
    folders = sorted(path for path in (root / paper).glob("*/seed-*") if pattern.fullmatch(path.name))
    runs = sorted((_load_run(folder.absolute(), paper) for folder in folders), key=lambda run: run.result.seed)
    if not runs:
        raise DataError(f"{(root / paper).absolute()}: no results (<row>/seed-<n>/metrics.json); train a row first")
    _check_scale(runs)
    rows = {run.result.row: [other for other in runs if other.result.row == run.result.row] for run in runs}
    for same_row in rows.values():
        _check_configs(same_row)
    return dict(sorted(rows.items()))


def _load_run(folder: Path, paper: str) -> Run:
    files = RunDir(folder)
    result = RunRecord.read(folder, error=DataError)
    try:
        for accuracy in result.correct:
            result.right(accuracy)
    except (KeyError, ValueError) as error:
        raise DataError(f"{files.metrics}: {error}; evaluate this row again") from None
    shifted = folder.parents[3] / "robustness" / paper / folder.parent.name / f"{folder.name}.json"
    if shifted.exists():  # measured by a stage of its own
        more = Shifted.load(shifted, error=DataError, advice="measure this row again")
        result = result.model_copy(update={"metrics": result.metrics | more.metrics})
    for name, found, expected in (
        ("paper", result.paper, paper),
        ("row", result.row, folder.parent.name),
        ("seed", f"seed-{result.seed}", folder.name),
    ):
        if found != expected:
            raise DataError(
                f"{files.metrics}: {name} is '{found}', its folder says '{expected}'; move it or train again"
            )
    return Run(folder, result, read_curves(files.curves))


def read_curves(path: Path) -> Curves:
    """Read a ``curves.csv``, a line per epoch; columns that are not numbers are an error, empty cells are None."""
    try:
        header, *lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines())) or [[]]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path}: {reason}; train this row again") from None
    if "epoch" not in header or len(set(header)) != len(header):
        raise DataError(f"{path}: the first line must name the columns once each, 'epoch' among them; train again")
    curves: Curves = {name: [] for name in header}
    for number, line in enumerate(lines, start=2):
        try:
            for name, text in zip(header, line, strict=True):
                curves[name].append(float(text) if text else None)
        except ValueError:
            raise DataError(
                f"{path}, line {number}: expected {len(header)} numbers or empty cells; train again"
            ) from None
    return curves


def _check_scale(runs: Iterable[Run]) -> None:
    by_scale = {run.result.scale: run for run in runs}
    if len(by_scale) > 1:
        found = "; ".join(f"{scale} in {run.folder}" for scale, run in sorted(by_scale.items()))
        raise DataError(f"results of several scales cannot share a table: {found}; keep one folder per scale")


def _check_configs(runs: list[Run]) -> None:
    first = _comparable(runs[0].result)
    for run in runs[1:]:
        changed = differences(first, _comparable(run.result))
        if changed:
            raise DataError(
                f"{run.folder}: trained with another config than {runs[0].folder.name} "
                f"({'; '.join(changed)}); train both with the same one"
            )


def _comparable(result: RunRecord) -> dict[str, Any]:
    """Return what must agree between the seeds of a row: dotted config fields, and the weights of teachers."""
    fields = {name: value for name, value in result.config.items() if name != "runtime"}
    found = dotted(fields)
    # Where a teacher's weights lie does not say which they are.
    places = {f"{name.removesuffix('recipe')}weights" for name in found if name.rpartition(".")[2] == "recipe"}
    found = {name: value for name, value in found.items() if value != {} and name not in _FREE_FIELDS | places}
    return found | {f"weights of the teacher {name}": of.sha256[:12] for name, of in result.teachers.items()}
