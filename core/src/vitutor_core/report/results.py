"""Read the records of evaluated runs: ``<root>/<paper>/<row>/seed-<n>/{metrics.json, curves.csv}``."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitutor_core.config import differences
from vitutor_core.errors import DataError

Curves = dict[str, list[float | None]]
"""Column name to one value per epoch; None where nothing was measured."""

# The seeds of a row may differ in these fields and in nothing else. Where a seed starts from another row's students,
# it starts from that of the same number.
_FREE_FIELDS = frozenset({"seed", "data.subset_seed", "student.weights"})


class Record(BaseModel):
    """Base of everything read from a file here: frozen, no unknown keys, finite numbers, strict types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Git(Record):
    """The commit that a run was made with; nulls outside a checkout."""

    commit: str | None
    dirty: bool | None


class Teacher(Record):
    """A frozen teacher: its model, the SHA-256 of its weights, and its accuracy in percent if that is known."""

    name: str
    sha256: str
    top1: float | None


class Result(Record):
    """The content of a ``metrics.json``; what was measured without training has no epochs and no updates.

    ``correct`` says, for an accuracy, which evaluation images were right; see `evaluate.accuracy.pack`.
    ``stored_logits`` tells how a run used logits of teachers that are kept; see `distill.taught`.
    """

    paper: str
    row: str
    scale: str
    seed: int = Field(ge=0)
    metrics: dict[str, float]
    correct: dict[str, str] = {}
    epochs: int = Field(ge=0)
    updates: int = Field(ge=0)
    train_images: int = Field(ge=1)
    fraction: float = Field(gt=0, le=1)
    own_metrics: bool = False
    events: dict[str, int] = Field(default_factory=dict)
    code: str | None = None
    fingerprint: str
    data_fingerprint: str
    teachers: dict[str, Teacher]
    stored_logits: dict[str, float] | None = None
    command: str
    git: Git
    versions: dict[str, str]
    machine: dict[str, Any]
    config: dict[str, Any]
    seconds: float = Field(ge=0)

    @property
    def evaluated_on(self) -> tuple[Any, ...]:
        """Return what tells which images were evaluated, and in which order."""
        data = self.config.get("data") or {}
        return data.get("source"), data.get("class_list"), self.metrics.get("images")

    def right(self, accuracy: str) -> NDArray[np.bool_] | None:
        """Return which images were right, (images,), for a metric that is an accuracy; None where it is not known.

        Raises `ValueError` where that does not give the accuracy.
        """
        if accuracy not in self.correct:
            return None
        images = int(self.metrics[f"{accuracy.removesuffix('top1')}images"])
        packed = np.frombuffer(bytes.fromhex(self.correct[accuracy]), dtype=np.uint8)
        found = np.unpackbits(packed).astype(bool)[:images]
        if len(packed) != -(-images // 8) or not math.isclose(100 * found.sum() / images, self.metrics[accuracy]):
            raise ValueError(f"'correct' does not give the {accuracy} of {self.metrics[accuracy]:g} %")
        return found


class Shifted(Record):
    """What a run was measured at out of distribution."""

    metrics: dict[str, float]


@dataclass(frozen=True)
class Run:
    """One training run: its result, its learning curves, and the folder they came from."""

    folder: Path
    result: Result
    curves: Curves


RecordT = TypeVar("RecordT", bound=Record)


def parse_record(schema: type[RecordT], text: str, *, where: str) -> RecordT:
    """Validate JSON text; raises `DataError` with every mistake in one line."""
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        found = [f"{'.'.join(map(str, detail['loc'])) or 'file'}: {detail['msg']}" for detail in error.errors()]
        raise DataError(f"{where}: {'; '.join(found)}") from None


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
    path = folder / "metrics.json"
    result = parse_record(Result, _read(path), where=str(path))
    try:
        for accuracy in result.correct:
            result.right(accuracy)
    except (KeyError, ValueError) as error:
        raise DataError(f"{path}: {error}; evaluate this row again") from None
    shifted = folder.parents[3] / "robustness" / paper / folder.parent.name / f"{folder.name}.json"
    if shifted.exists():  # measured by a stage of its own
        more = parse_record(Shifted, _read(shifted), where=str(shifted))
        result = result.model_copy(update={"metrics": result.metrics | more.metrics})
    for name, found, expected in (
        ("paper", result.paper, paper),
        ("row", result.row, folder.parent.name),
        ("seed", f"seed-{result.seed}", folder.name),
    ):
        if found != expected:
            raise DataError(f"{path}: {name} is '{found}', its folder says '{expected}'; move it or train again")
    return Run(folder, result, read_curves(folder / "curves.csv"))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise DataError(f"{path}: {reason}; train this row again") from None


def read_curves(path: Path) -> Curves:
    """Read a ``curves.csv``, a line per epoch; columns that are not numbers are an error, empty cells are None."""
    header, *lines = list(csv.reader(_read(path).splitlines())) or [[]]
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


def _comparable(result: Result) -> dict[str, Any]:
    """Return the dotted config fields that must agree between the seeds of a row."""
    fields = {name: value for name, value in result.config.items() if name != "runtime"}
    return {name: value for name, value in _leaves(fields, "") if name not in _FREE_FIELDS}


def _leaves(values: dict[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
