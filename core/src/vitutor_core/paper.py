"""What a paper package announces of itself, and how the installed ones are found.

Imports next to nothing, not even `dataclasses`: a command starts here, and answers Ctrl-C in one line from then on.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vitutor_core.errors import ConfigError
from vitutor_core.terminal import exit_after

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint
    from pathlib import Path

    from vitutor_core.schema import RunConfig

GROUP = "vitutor.papers"
"""The entry points of papers."""


class Paper(NamedTuple):
    """A paper package: its folder name, and where its config and its method are (``module:name``).

    ``summary`` is what the help of its command says, and ``commands`` are click's commands beside those that all papers
    have. ``stages`` names a function that returns the stages of the paper's graph beside its rows,
    `vitutor_core.graph.stages.ExtraStages`; ``heads`` one that says what is measured out of distribution beside the
    student's prediction, `vitutor_core.evaluate.shifts.HeadsOf`; ``layouts`` how the checkpoints that others published
    of its models name their tensors, a tuple of `vitutor_core.models.layouts.Layout`. ``term`` names a function that
    adds the paper's term to a method of another paper, given that, the ``method`` section of a config of this paper,
    and the data.
    """

    package: str
    config: str
    method: str
    summary: str | None = None
    commands: tuple[str, ...] = ()
    stages: str | None = None
    heads: str | None = None
    layouts: str | None = None
    term: str | None = None

    def beside(self, other: Paper) -> Paper:
        """Return this paper with the term of ``other`` beside its method; the config has a section for it."""
        package, config, method = (f"{part}+{other.package}" for part in (self.package, self.config, self.method))
        return Paper(package, config, method)

    @property
    def command(self) -> str:
        return self.package.replace("_", "-")

    def main(self) -> NoReturn:
        """Run the paper's command."""
        exit_after(lambda: load("vitutor_core.cli.entry:run")(load("vitutor_core.cli.paper:paper_group")(self)))

    def resolve(
        self,
        scale: str,
        recipe: Path | None,
        row: str | None,
        settings: tuple[str, ...],
        *,
        preset: str | None = None,
    ) -> RunConfig:
        """Return the validated config of a run."""
        from vitutor_core.recipe import recipe_path, resolve

        schema: type[RunConfig] = load(self.config)
        return resolve(schema, recipe_path(self.package, scale, recipe), preset=preset, row=row, settings=settings)


def teacher_recipe(scale: str, name: str) -> Path:
    """Return the recipe that has the teacher ``name``: core's, or an installed paper's ``recipes/teachers/SCALE.yaml``.

    It is core's where none has it.
    """
    from vitutor_core.recipe import has_row, recipe_path

    own = recipe_path("vitutor_core", scale)
    others = (recipe_path(package, f"teachers/{scale}") for package in _entries())
    return next((path for path in (own, *others) if path.exists() and has_row(path, name)), own)


def load(reference: str) -> Any:
    """Import ``module:name``; papers name their heavy parts so, to be quick until they are needed.

    ``module:name+PACKAGE`` is the config or the method of `Paper.beside`.
    """
    reference, *others = reference.split("+")
    module, _, name = reference.partition(":")
    found = getattr(importlib.import_module(module), name)
    for package in others:
        from vitutor_core.compose import Composed, with_section
        from vitutor_core.config import Config

        other = installed_paper(package)
        if other.term is None:
            raise ConfigError(f"{package}: it has no term that goes beside another method")
        if isinstance(found, type) and issubclass(found, Config):
            found = with_section(found, package, load(other.config).model_fields["method"].annotation)
        else:
            found = Composed(found, package, load(other.term))
    return found


def installed_papers() -> dict[str, Paper]:
    """Return the installed papers by package name, in alphabetical order."""
    return {package: entry.load() for package, entry in _entries().items()}


def installed_paper(package: str) -> Paper:
    """Return one installed paper, or two as `Paper.beside` names them; raises `ConfigError` for one that is not."""
    if "+" in package:
        first, _, second = package.rpartition("+")
        return installed_paper(first).beside(installed_paper(second))
    entries = _entries()
    if package not in entries:
        from vitutor_core.config import nearest

        hint = nearest(package, entries) or f"; pip install ./{package}"
        raise ConfigError(f"paper '{package}' is not installed{hint}")
    paper: Paper = entries[package].load()
    return paper


def _entries() -> dict[str, EntryPoint]:
    """Return the entry points of the installed papers by package name, in alphabetical order."""
    return _entries_on(tuple(sys.path))


@cache
def _entries_on(path: tuple[str, ...]) -> dict[str, EntryPoint]:
    # To look through all that is installed takes longer than to resolve a row.
    from importlib.metadata import entry_points

    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}
