"""Train one run, and before it, at the scale of a user's own images, the rows that it starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitutor_core.config import fingerprinted_fields, setting
from vitutor_core.errors import named
from vitutor_core.graph.needs import rows_of, teachers_of
from vitutor_core.jobs.sizes import show_sizes
from vitutor_core.jobs.teacher import inherited, recipe_teachers, with_teachers
from vitutor_core.paper import Paper, load
from vitutor_core.progress import is_silent
from vitutor_core.recipe import OWN, has_row
from vitutor_core.runs import RunDir
from vitutor_core.schema import RunConfig
from vitutor_core.terminal import say

if TYPE_CHECKING:
    from vitutor_core.runs import RunRecord
    from vitutor_core.train.track import Callback

_SHARED = ("data.", "runtime.", "train.", "seed=", "student.name=", "student.kwargs")
"""Settings that a row has of the one that starts from it."""


Settings = Mapping[str, Any] | Sequence[str]
"""Values by the dotted path of their field, or texts as --set takes them."""


@dataclass(frozen=True)
class Asked:
    """What a command was asked to train; ``row`` None is the recipe's base."""

    paper: Paper
    scale: str
    recipe: Path | None
    preset: str | None
    row: str | None
    settings: tuple[str, ...]
    command: str

    def config(self) -> RunConfig:
        """Resolve it."""
        return self.paper.resolve(self.scale, self.recipe, self.row, self.settings, preset=self.preset)


def texts(settings: Settings) -> tuple[str, ...]:
    """Return settings as --set takes them."""
    if isinstance(settings, Mapping):
        return tuple(setting(path, value) for path, value in settings.items())
    return tuple(settings)


def train_row(asked: Asked, out: Path, teachers: Path, callbacks: Sequence[Callback] = ()) -> RunRecord:
    """Train a run into ``out``, and what it needs before it: teachers into ``teachers``, rows below ``out``.

    ``callbacks`` are told of this run alone; see `train.track`.
    """
    config = asked.config()
    if teachers_of(config) or rows_of(config):
        _refuse_another(asked.paper, config, out)
    if asked.scale == OWN:
        show_sizes(config, recipe_teachers(config, asked.scale))
        config = config.changed(_rows_before(asked, config, out / "rows", teachers))
    from vitutor_core.train.session import RunLabel, train

    paper = asked.paper
    config = with_teachers(config, asked.scale, teachers, method=paper.method)
    label = RunLabel(paper.package, asked.row or "train", asked.scale, asked.command)
    was_finished = RunDir(out).metrics.exists()
    record = train(config, load(paper.method).build, label=label, out=out, callbacks=callbacks)
    if was_finished and not is_silent():
        say(f"{out}: was finished before, nothing was trained", err=True)
    return record


def _refuse_another(paper: Paper, config: RunConfig, out: Path) -> None:
    """Raise where ``out`` holds another run, before teachers and rows are trained for this one."""
    if not (out / "run.json").exists():
        return
    from vitutor_core.data.build import plan_data
    from vitutor_core.data.detection.open import is_annotated
    from vitutor_core.train.run_folder import refuse_another

    identity = {"method": paper.package, "config": fingerprinted_fields(config)}
    if not is_annotated(config.data.source):
        identity["data"] = plan_data(config).info.fingerprint
    refuse_another(out, identity)


def _rows_before(asked: Asked, config: RunConfig, folder: Path, teachers: Path) -> list[str]:
    """Train, unless they are there, the rows that a config starts from or learns from; return where they are.

    A recipe that `config --out` wrote has no rows: they are then those of its scale, on its images.
    """
    shared = tuple(text for text in asked.settings if text.startswith(_SHARED))
    found = []
    for path, row in rows_of(config):
        before = replace(asked, row=row, settings=shared)
        if asked.recipe is not None and not has_row(asked.recipe, row):
            before = replace(before, recipe=None, preset=None, settings=(*inherited(config), *shared))
        run = RunDir((folder / row).absolute())
        if not is_silent():
            say(f"{'row':10}{row}, which comes first, in {run.path}", err=True)
        with named(f"row {row}"):
            train_row(before, run.path, teachers)
        found.append(setting(f"{path}.weights", str(run.path)))
    return found
