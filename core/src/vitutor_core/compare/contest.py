"""From the lines of `vitutor compare` to the rows that are trained. Imports nothing heavy itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vitutor_core.baseline import BASELINE, SUPERVISED, BaselineConfig
from vitutor_core.compare.lines import Line, read_lines, sized
from vitutor_core.config import nearest, setting
from vitutor_core.errors import ConfigError, named
from vitutor_core.graph.needs import needs_of
from vitutor_core.jobs.reproduce import Row
from vitutor_core.paper import Paper, teacher_recipe
from vitutor_core.recipe import recipe_path, resolve

if TYPE_CHECKING:
    from vitutor_core.models.sizes import StudentSizes

PLAIN, LONG = "plain", "plain_long"
"""The student alone, and the student alone for as much compute as the costliest method takes."""
_SHARED = ("data", "augment", "optim", "train")
"""Sections that a line has of the budget; what is trained before it has the data alone."""


class Entry(NamedTuple):
    """A line of the table and its row. ``parts`` are the lines that a composition is made of."""

    name: str
    line: Line
    row: Row
    parts: tuple[str, ...] = ()

    @property
    def is_common(self) -> bool:
        """Whether the common student is what is trained."""
        return self.line.own is None


@dataclass(frozen=True)
class Contest:
    """One student, one budget: what the installed papers can train at a scale, with ``settings`` for all of it."""

    scale: str
    papers: Mapping[str, Paper]
    settings: tuple[str, ...] = ()
    said: str | None = None
    _rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    @cached_property
    def budget(self) -> BaselineConfig:
        """Return the config of the student alone: what all lines have."""
        return resolve(BaselineConfig, self._recipe(BASELINE), row=PLAIN, settings=self.settings)

    @cached_property
    def sizes(self) -> StudentSizes:
        from vitutor_core.models.sizes import student_sizes

        return student_sizes(self.budget.student, self.budget.data.image_size)

    @cached_property
    def lines(self) -> dict[str, tuple[Paper, Line]]:
        """Return all lines by name, those without a paper first; of papers that have no recipe at the scale, none."""
        found: dict[str, tuple[Paper, Line]] = {}
        papers = [paper for paper in self.papers.values() if recipe_path(paper.package, self.scale).exists()]
        for paper in (BASELINE, *papers):
            for name, line in read_lines(paper.package).items():
                if name in found:
                    raise ConfigError(f"{paper.package}/compare.yaml: there is a line '{name}' already")
                found[name] = paper, line
        return found

    def entries(self, names: Iterable[str] | None = None) -> list[Entry]:
        """Return the lines ``names``, or all, the student alone first."""
        wanted = list(self.lines) if names is None else [PLAIN, *(name for name in names if name not in {PLAIN, LONG})]
        return [self.entry(name) for name in dict.fromkeys(wanted)]

    def entry(self, name: str) -> Entry:
        """Return a line, or a composition ``A+B`` of lines; raises `ConfigError` where there is none.

        The name of a composition has what is trained first, then terms in alphabetical order, then what it starts from.
        """
        if "+" in name:
            return self._composition(name)
        paper, line = self._line(name)
        return Entry(name, line, self._row(paper, name, line))

    def compositions(self) -> list[str]:
        """Return the names of all compositions of two lines: a method on the common student, and what others add."""
        usable = {name: (paper, line) for name, (paper, line) in self.lines.items() if line.own is None}
        methods = [name for name, (paper, line) in usable.items() if line.adds is None and paper is not BASELINE]
        terms, starts = (
            [name for name, (_, line) in usable.items() if line.adds == kind] for kind in ("term", "start")
        )
        return [f"{one}+{other}" for one in methods for other in (*terms, *starts)] + [
            f"{start}+{term}" for start in starts for term in terms
        ]

    def before(self, row: Row) -> list[tuple[Row, bool]]:
        """Return the rows that are trained before ``row``, in order, each with whether all its seeds are needed."""
        needs = needs_of(row.config(0))
        found: list[tuple[Row, bool]] = []
        for name in needs.rows:
            package, _, own = name.rpartition("/")
            other = self._rows[package or row.paper.package.partition("+")[0], own]
            found += [*self.before(other), (other, name in needs.starts)]
        return list(dict(found).items())

    def teacher_rows(self, row: Row) -> dict[str, Row]:
        """Return the rows that teach ``row``, by their names."""
        package = row.paper.package.partition("+")[0]
        return {name: self._rows[package, name] for name in needs_of(row.config(0)).teacher_rows}

    def longer(self, entry: Entry, epochs: int) -> Entry:
        """Return the student alone, trained for ``epochs``."""
        row = replace(entry.row, name=LONG, settings=(*entry.row.settings, f"train.epochs={epochs}"))
        return Entry(LONG, entry.line.model_copy(update={"title": "the student alone, longer"}), row)

    def _line(self, name: str) -> tuple[Paper, Line]:
        if name not in self.lines:
            raise ConfigError(
                f"--methods: no line '{name}'{nearest(name, self.lines)}; there are {', '.join(self.lines)}"
            )
        return self.lines[name]

    def _row(self, paper: Paper, name: str, line: Line) -> Row:
        """Return the row of a line, and know those that are trained before it."""
        with named(f"{paper.command}, line {name}"):
            if line.teacher is not None:
                shared = self._sections("data", "train")
                recipe = teacher_recipe(self.scale, line.teacher)
                return Row(
                    SUPERVISED, name, self.scale, None, (*shared, *self._others), line.teacher, recipe, self.said
                )
            row = self._made(paper, name, line, str(line.row), _SHARED)
            student = self._common if line.own is None else self._of_its_own(row)
            row = replace(row, settings=(*row.settings[: len(_SHARED)], *student, *row.settings[len(_SHARED) :]))
            self._know_before(row, line)
            return row

    def _know_before(self, row: Row, line: Line) -> None:
        needs = needs_of(row.config(0))
        for name in needs.rows:
            other = self._made(row.paper, name, line, name, ("data",))
            if name in needs.starts:
                other = replace(other, settings=(other.settings[0], *self._common, *other.settings[1:]))
            known = self._rows.setdefault((row.paper.package, name), other)
            if known != other:
                raise ConfigError(f"{row.paper.package}/compare.yaml: lines differ in what they change of row {name}")
            self._know_before(other, line)

    def _made(self, paper: Paper, name: str, line: Line, of: str, shared: Sequence[str]) -> Row:
        changes = (setting(path, value) for path, value in sized(line.changes.get(of, {}), self.sizes).items())
        settings = (*self._sections(*shared), *changes, *self._others)
        return Row(paper, name, self.scale, None, settings, of, self._recipe(paper), self.said)

    def _composition(self, name: str) -> Entry:
        parts = {part: self._line(part) for part in sorted(name.split("+"))}
        if PLAIN in parts or len(parts) <= name.count("+"):
            raise ConfigError(f"--compose {name}: join different lines, each of which adds to the student alone")
        methods, starts, terms = (
            [part for part, (_, line) in parts.items() if line.adds == kind] for kind in (None, "start", "term")
        )
        kinds = f"{len(methods)} methods, {len(starts)} starts and {len(terms)} terms"
        if len(methods) > 1 or len(starts) > 1 or not methods + starts:
            raise ConfigError(
                f"--compose {name}: {kinds}; at most one method and one start, and what others add to them"
            )
        if own := [line.title for _, line in parts.values() if line.own is not None]:
            raise ConfigError(
                f"--compose {name}: {', '.join(own)} needs a student of its own; only the common one is shared"
            )
        first = (methods or starts)[0]
        order = tuple(dict.fromkeys((first, *terms, *starts)))
        name, (paper, line) = "+".join(order), parts[first]
        row = replace(self._row(paper, name, line), name=name)
        for other, lender in map(parts.__getitem__, terms):
            section = self._row(other, name, lender).config(0).model_dump(mode="json")["method"]
            row = replace(row, paper=row.paper.beside(other), settings=(*row.settings, setting(other.package, section)))
        for other, lender in map(parts.__getitem__, starts if methods else ()):
            start = self._row(other, name, lender).config(0).student.start_row
            row = replace(row, settings=(*row.settings, f"student.start_row={other.package}/{start}"))
        title = " + ".join(parts[part][1].title for part in order)
        return Entry(name, Line(title=title, row=line.row), row, order)

    @cached_property
    def _common(self) -> tuple[str, ...]:
        student = self.budget.student
        found = (
            setting("student.name", student.name),
            setting("student.kwargs", student.model_dump(mode="json")["kwargs"]),
        )
        return (*found, "student.pretrained=true") if student.pretrained else found

    def _of_its_own(self, row: Row) -> tuple[str, ...]:
        """Return the settings that give a student with an architecture of its own the sizes of the common one."""
        student = row.config(0).student
        sizes = {name: value for name, value in self.sizes._asdict().items() if name != "wide"}
        kwargs: dict[str, Any] = {**student.kwargs, **self.budget.student.kwargs, **sizes}
        return setting("student.name", student.name), setting("student.kwargs", kwargs)

    def _sections(self, *names: str) -> tuple[str, ...]:
        values = self.budget.model_dump(mode="json", include=set(names))
        return tuple(setting(name, values[name]) for name in names)

    @property
    def _others(self) -> tuple[str, ...]:
        """Return the settings for all but those of the common student.

        Unless asked for, no line takes a teacher's logits from another one's store: its time would not be its own.
        """
        return ("cache.folder=null", *(text for text in self.settings if not text.startswith("student")))

    def _recipe(self, paper: Paper) -> Path:
        return recipe_path(paper.package, f"budget/{self.scale}" if paper is BASELINE else self.scale)
