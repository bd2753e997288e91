"""The paper's own numbers as data: the schema of a ``paper_results.yaml``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from vitutor_core.config import parse_yaml
from vitutor_core.errors import DataError
from vitutor_core.runs import Record

Cell = bool | int | float | str | None
_COLUMN = "*"


def split_row(name: str) -> tuple[str, str | None]:
    """Split ``row:metric`` into the package's row and the metric of its own, None for the table's."""
    row, _, metric = name.partition(":")
    return row, metric or None


class PaperRow(Record):
    """A row of a printed table.

    ``cells`` maps column ids to what is printed (null: nothing). ``row`` names the package's row that reproduces
    the measured cell, or one row per measured column; ``row:metric`` takes another of its metrics than the table's.
    A ``*`` in a name stands for the id of each measured column that ``cells`` has. ``fraction`` is the share of the
    training data, if rows differ in it.
    """

    label: str
    cells: dict[str, Cell]
    row: str | dict[str, str] | None = None
    fraction: float | None = Field(None, gt=0, le=1)

    def row_of(self, column: str) -> str | None:
        """Return the package's row that reproduces the cell of a measured column, if any."""
        if self.row is None or isinstance(self.row, dict):
            return (self.row or {}).get(column)
        if _COLUMN in self.row and column not in self.cells:
            return None
        return self.row.replace(_COLUMN, column)


class Comparison(Record):
    """Two of the package's rows whose difference the report judges: ``row`` minus ``to``.

    A ``*`` in the names stands for the id of each measured column: one comparison for each. ``claim`` is the side that
    the paper's text puts the row on, where it prints no numbers.
    """

    row: str
    to: str
    headline: bool = False
    claim: Literal["above", "below"] | None = None


@dataclass(frozen=True)
class MeasuredCell:
    """A printed number of the table's metric, and the package's row that reproduces it, if any."""

    printed: PaperRow
    column: str
    value: float | None
    row: str | None


def _measured_columns(known: dict[str, Any]) -> tuple[str, ...]:
    columns = tuple(known.get("columns", ()))
    return (known["metric"],) if known.get("metric") in columns else columns


Cost = Literal["parameters", "macs", "hours", "images_per_s"]


class PaperTable(Record):
    """A table of the paper.

    ``columns`` maps ids to headings; those in ``measured`` hold ``metric``, a name in metrics.json, in ``unit`` and
    shown with ``decimals``: by default the column of that id or, where there is none, all. Differences are taken to the
    package's row ``baseline``. ``figure`` asks for a plot: the metric against ``fraction``, the gain of each row over
    the baseline, or the metric by label. ``setting`` names the printed numbers' images, by default the paper's
    ``scale``. ``scales`` are those at which the table is shown, by default all. ``optional`` metrics need not be there,
    as where an extra computes them: they then count as not measured. ``costs`` says what is measured beside columns
    that are printed only: millions of parameters, 1e9 multiply-adds of an image, hours of training, images per second.
    """

    id: str
    title: str
    caption: str
    setting: str | None = None
    metric: str = "top1"
    columns: dict[str, str]
    measured: tuple[str, ...] = Field(default_factory=_measured_columns)
    unit: str = "points"
    decimals: int = Field(1, ge=0)
    scales: tuple[str, ...] = ()
    optional: bool = False
    costs: dict[str, Cost] = Field(default_factory=dict)
    rows: tuple[PaperRow, ...]
    baseline: str | None = None
    comparisons: tuple[Comparison, ...] = ()
    figure: Literal["fraction", "ablation", "groups"] | None = None

    def cells(self) -> Iterator[MeasuredCell]:
        """Yield the measured cells, row by row."""
        for printed in self.rows:
            for column in self.measured:
                value = printed.cells.get(column)
                yield MeasuredCell(printed, column, None if value is None else float(value), printed.row_of(column))

    def reproduced(self) -> dict[str, MeasuredCell]:
        """Map the package's rows to the cells that they reproduce."""
        return {cell.row: cell for cell in self.cells() if cell.row is not None}

    @field_validator("comparisons")
    @classmethod
    def _compare_each_column(cls, pairs: tuple[Comparison, ...], known: ValidationInfo) -> tuple[Comparison, ...]:
        def each(pair: Comparison) -> list[Comparison]:
            if _COLUMN not in pair.row + pair.to:
                return [pair]
            if _COLUMN not in pair.row or _COLUMN not in pair.to:
                raise ValueError(f"comparison of '{pair.row}' with '{pair.to}': put the * into both, or into neither")
            return [
                pair.model_copy(update={side: getattr(pair, side).replace(_COLUMN, name) for side in ("row", "to")})
                for name in known.data.get("measured", ())
            ]

        return tuple(one for pair in pairs for one in each(pair))

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if not set(self.measured) <= set(self.columns):
            raise ValueError(f"measured columns are not in columns: {sorted(set(self.measured) - set(self.columns))}")
        for row in self.rows:
            used = set(row.cells) | (set(row.row) if isinstance(row.row, dict) else set())
            if used - set(self.columns):
                raise ValueError(f"row '{row.label}' has cells outside the columns: {sorted(used - set(self.columns))}")
            if isinstance(row.row, str) and _COLUMN not in row.row and len(self.measured) != 1:
                raise ValueError(f"row '{row.label}' must name its package row per measured column")
            if any(isinstance(row.cells.get(column), bool | str) for column in self.measured):
                raise ValueError(f"row '{row.label}' has a measured cell that is not a number")
        names = [cell.row for cell in self.cells() if cell.row is not None]
        wanted = [name for pair in self.comparisons for name in (pair.row, pair.to)]
        wanted += [self.baseline] if self.baseline else []
        if len(set(names)) != len(names):
            raise ValueError("a package row reproduces two cells")
        if not set(wanted) <= set(names):
            raise ValueError(f"baseline or comparisons name unknown rows: {sorted(set(wanted) - set(names))}")
        cells = self.reproduced()
        for pair in self.comparisons:
            if pair.claim and None not in (cells[pair.row].value, cells[pair.to].value):
                raise ValueError(f"comparison of '{pair.row}' with '{pair.to}': both are printed, so it needs no claim")
        return self


class Series(Record):
    """A figure of what the method's report measured during training: a panel per row, a line per column of curves.csv.

    ``columns`` is a name with a ``*`` for the number of the line. ``id`` is the name of the figure's file, ``axis``
    the label of what is measured.
    """

    id: str
    title: str
    caption: str
    axis: str
    columns: str = Field(pattern=r"^[^*]*\*[^*]*$")
    rows: tuple[str, ...]


class PaperResults(Record):
    """What a paper reports.

    ``methods`` maps the names of the package's methods to their titles, in the order of their colours; the rows of
    method ``m`` are ``m`` itself and ``m_<anything>``; ``m:metric`` names what else was measured of them. Rows that
    have names of ``variants`` after that of ``m`` are a method of their own: each variant adds to the title of ``m``,
    and to its position in the order of colours, unless ``colours`` has it. ``scale`` is the scale of the printed
    numbers and ``setting`` describes it. ``curves`` maps the titles of figures to the rows whose learning curves they
    show, ``series`` are the paper's own figures, and ``galleries`` maps folders of images, below the paper's results,
    to their titles.
    """

    paper: str
    title: str
    citation: str
    scale: str
    setting: str
    methods: dict[str, str]
    variants: dict[str, str] = Field(default_factory=dict)
    colours: dict[str, int] = Field(default_factory=dict)
    curves: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    series: tuple[Series, ...] = ()
    galleries: dict[str, str] = Field(default_factory=dict)
    tables: tuple[PaperTable, ...]

    def method_of(self, row: str) -> str | None:
        """Return the method that ``row`` is a row of: the longest name that fits, with its variants."""
        name, variants = self._fit(row)
        if name is None:
            return None
        stem, metric = split_row(name)
        return "_".join((stem, *variants)) + (f":{metric}" if metric else "")

    def title_of(self, row: str) -> str:
        """Return the title of the row's method, or the row's name where no method fits."""
        name, variants = self._fit(row)
        if name is None:
            return row
        added = [self.variants[variant] for variant in variants]
        return self.methods[name] + "".join(text if text.startswith(",") else f" {text}" for text in added)

    def position_of(self, row: str) -> int:
        """Return the position of the row's method in the order of colours, the first where no method fits."""
        name, variants = self._fit(row)
        if name is None:
            return 0
        positions = list(self.variants)
        position = list(self.methods).index(name) + sum(1 + positions.index(variant) for variant in variants)
        return self.colours.get(self.method_of(row) or "", position)

    def _fit(self, row: str) -> tuple[str | None, tuple[str, ...]]:
        """Return the name in ``methods`` that fits the row, and the variants that follow it."""
        own, metric = split_row(row)
        fitting = []
        for name in self.methods:
            stem, of = split_row(name)
            if of in (None, metric) and (own == stem or own.startswith(f"{stem}_")):
                variants = self._leading_variants(own.removeprefix(stem))
                fitting.append((of is not None, len("_".join((stem, *variants))), len(stem), name, variants))
        return max(fitting)[-2:] if fitting else (None, ())

    def _leading_variants(self, rest: str) -> tuple[str, ...]:
        found: list[str] = []
        while fitting := [name for name in self.variants if f"{rest}_".startswith(f"_{name}_")]:
            found.append(max(fitting, key=len))
            rest = rest.removeprefix(f"_{found[-1]}")
        return tuple(found)

    @model_validator(mode="after")
    def _methods_are_known(self) -> Self:
        rows = [row for drawn in self.curves.values() for row in drawn]
        rows += [row for series in self.series for row in series.rows]
        rows += [row for table in self.tables for row in table.reproduced()]
        unknown = sorted({row for row in rows if self.method_of(row) is None})
        if unknown:
            raise ValueError(f"rows of no method in 'methods': {unknown}")
        strange = sorted(name for name in self.colours if self.method_of(name) != name)
        if strange:
            raise ValueError(f"'colours' of no method with variants: {strange}")
        return self


def load_paper_results(path: Path) -> PaperResults:
    """Read and check a ``paper_results.yaml``; raises `DataError` or, where it is not YAML, `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path.absolute()}: {error.strerror}; reinstall the package") from None
    values = parse_yaml(text, where=str(path.absolute()))
    where = str(path.absolute())
    return PaperResults.parse(json.dumps(values), where=where, error=DataError, advice="mend this file")
