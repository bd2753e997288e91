"""The lines of `vitutor compare`: what a package's ``compare.yaml`` says can train the common student. Light to import.

A line is a row of the package's recipes in which the common student takes the place of the row's own. What needs an
architecture of its own says so, and gets the common student's sizes; what begins with ``$student.`` is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from vitutor_core.config import Config, nearest, parse_yaml
from vitutor_core.errors import ConfigError

if TYPE_CHECKING:
    from vitutor_core.models.sizes import StudentSizes


class Line(Config):
    """A line of the table.

    title: what it is called there. row: of the recipe of a scale; or teacher: a row of the recipes of teachers.
    own: what the student has that the common one has not; null: it is the common student.
    adds: what the line can give to others: a term of the loss, or the weights that they start from.
    changes: fields by row, of the line's own row and of those that are trained before it.
    """

    title: str
    row: str | None = None
    teacher: str | None = None
    own: str | None = None
    adds: Literal["term", "start"] | None = None
    changes: dict[str, dict[str, Any]] = Field({})

    @model_validator(mode="after")
    def _is_of_one_kind(self) -> Self:
        if (self.row is None) == (self.teacher is None):
            raise ValueError("name either a row or a teacher")
        return self


def read_lines(package: str) -> dict[str, Line]:
    """Return the lines of a package by name; raises `ConfigError` for a file that does not hold lines."""
    path = Path(str(files(package))) / "compare.yaml"
    if not path.is_file():
        return {}
    loaded = parse_yaml(path.read_text(encoding="utf-8"), where=f"{package}/{path.name}")
    return {
        name: Line.from_mapping(values, where=f"{package}/{path.name}: {name}")
        for name, values in dict(loaded or {}).items()
    }


def sized(values: Any, sizes: StudentSizes) -> Any:
    """Return nested values with the sizes that they name; raises `ConfigError` where there is no such size."""
    if isinstance(values, Mapping):
        return {key: sized(value, sizes) for key, value in values.items()}
    if isinstance(values, list):
        return [sized(value, sizes) for value in values]
    if not isinstance(values, str) or not values.startswith("$student."):
        return values
    name = values.removeprefix("$student.")
    if name not in sizes._fields:
        raise ConfigError(f"{values}: no such size{nearest(name, sizes._fields)}")
    return getattr(sizes, name)
