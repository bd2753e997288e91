"""What a resolved config needs before it can be trained: data, teachers, other rows, generated images."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vitutor_core.config import Config
from vitutor_core.schema import RunConfig, TeacherConfig

START = "student"
"""The path of what starts from another row."""


@dataclass(frozen=True)
class Needs:
    """What must be there first.

    ``source`` is a data source; ``teachers`` are rows of teacher recipes; ``starts`` and ``teacher_rows`` are
    rows of the same paper; ``images`` is a folder of generated training images.
    """

    source: str
    teachers: tuple[str, ...]
    starts: tuple[str, ...]
    teacher_rows: tuple[str, ...]
    images: str | None

    @property
    def rows(self) -> tuple[str, ...]:
        return (*self.starts, *self.teacher_rows)


def needs_of(config: RunConfig) -> Needs:
    """Return what a config names and does not say where it is."""
    rows = rows_of(config)
    return Needs(
        source=config.data.source,
        teachers=teacher_recipes(config),
        starts=tuple(row for path, row in rows if path == START),
        teacher_rows=tuple(dict.fromkeys(row for path, row in rows if path != START)),
        images=config.data.train_from,
    )


def rows_of(config: RunConfig) -> list[tuple[str, str]]:
    """Return the path of the student or of a teacher, and the row that it comes from, where that has no weights yet."""
    wanted = [(START, config.student.start_row, config.student.weights)]
    wanted += [(path, teacher.row, teacher.weights) for path, teacher in teachers_of(config)]
    return [(path, row) for path, row, weights in wanted if row is not None and weights is None]


def teacher_recipes(config: Config) -> tuple[str, ...]:
    """Return the teacher recipes that a config names, each once, in alphabetical order."""
    return tuple(sorted({teacher.recipe for _, teacher in teachers_of(config) if teacher.recipe is not None}))


def teachers_of(config: Config, prefix: str = "") -> list[tuple[str, TeacherConfig]]:
    """Return every teacher section of a config with its dotted path."""
    found: list[tuple[str, TeacherConfig]] = []
    for name in type(config).model_fields:
        value = getattr(config, name)
        children = value.items() if isinstance(value, Mapping) else [(None, value)]
        for key, child in children:
            path = prefix + name if key is None else f"{prefix}{name}.{key}"
            if isinstance(child, TeacherConfig):
                found.append((path, child))
            elif isinstance(child, Config):
                found.extend(teachers_of(child, f"{path}."))
    return found


def source_name(source: str) -> str:
    """Return a data source as the name of a file: ``folder:imagenet`` is ``folder-imagenet``."""
    return re.sub(r"[^\w.]+", "-", source)
