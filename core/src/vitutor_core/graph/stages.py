"""What a graph consists of at one scale: rows with what they need, teachers, data, and the stages that papers add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from vitutor_core.errors import ConfigError
from vitutor_core.graph.code import MEASURING, code_fingerprint
from vitutor_core.graph.needs import Needs, needs_of
from vitutor_core.paper import Paper, installed_paper, installed_papers, load, teacher_recipe
from vitutor_core.recipe import CORE_GROUP, Recipe, read_recipe, recipe_path, resolve
from vitutor_core.schema import RunConfig


@dataclass(frozen=True)
class Stage:
    """A stage that a paper adds to its rows: ``name@item`` runs ``command``, which writes the folders ``outs``.

    It needs other rows, teachers, data sources and the outputs of other such stages; of data that no stage checks, it
    reads the ``folders`` below the data root, and is run only if its ``group`` is. ``plan`` is all else that decides
    its result, as JSON values. Paths are relative to the folder of results.
    """

    name: str
    item: str
    command: str
    outs: tuple[str, ...]
    rows: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    group: str = CORE_GROUP
    folders: tuple[str, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)


ExtraStages = Callable[[str], Iterable[Stage]]
"""Returns the stages that a paper adds at a scale."""


@dataclass(frozen=True)
class PaperGraph:
    """A paper's recipe at a scale, each row's config and needs, and the paper's own stages."""

    paper: Paper
    recipe: Recipe
    configs: Mapping[str, RunConfig]
    stages: tuple[Stage, ...]

    @cached_property
    def needs(self) -> dict[str, Needs]:
        return {row: needs_of(config) for row, config in self.configs.items()}


@dataclass(frozen=True)
class Graph:
    """Everything that can be run at a scale with the installed papers."""

    scale: str
    papers: dict[str, PaperGraph]
    teachers: dict[str, RunConfig]

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the data sources of all rows and teachers, each once."""
        own = [config.data.source for config in self.teachers.values()]
        for paper in self.papers.values():
            own += [needs.source for needs in paper.needs.values()]
            own += [source for stage in paper.stages for source in stage.sources]
        return tuple(dict.fromkeys(own))


def train_code(paper: Paper) -> str:
    """Fingerprint the code that trains a paper's rows."""
    return code_fingerprint([*_modules(paper), "vitutor_core.train.session"], without=MEASURING)


def evaluation_code(paper: Paper) -> str:
    """Fingerprint the code that evaluates a paper's rows."""
    return code_fingerprint([*_modules(paper), "vitutor_core.train.evaluation"], without=frozenset({"report", "cli"}))


def _modules(paper: Paper) -> list[str]:
    """Return the modules of a paper's method and config, and those of the terms that go beside it."""
    others = [installed_paper(package) for package in paper.package.split("+")[1:]]
    beside = [reference for other in others for reference in (other.term, other.config) if reference is not None]
    own = [_module(reference) for reference in (paper.method, paper.config, *beside)]
    return [*own, "vitutor_core.compose"] if others else own


def _module(reference: str) -> str:
    return reference.partition(":")[0]


def read_graph(scale: str, papers: Mapping[str, Paper] | None = None) -> Graph:
    """Resolve every row of the installed papers at a scale, and the teachers that they need.

    Raises `ConfigError` where no paper has the scale, and for rows that need rows or teachers that do not exist.
    """
    found = {}
    for name, paper in (installed_papers() if papers is None else papers).items():
        path = recipe_path(name, scale)
        if path.exists():
            found[name] = _paper_graph(paper, read_recipe(path), scale)
    if not found:
        raise ConfigError(f"no installed paper has a recipe for the scale '{scale}'")
    return Graph(scale, found, _teachers(scale, found))


def _paper_graph(paper: Paper, recipe: Recipe, scale: str) -> PaperGraph:
    configs = {row: paper.resolve(scale, None, row, ()) for row in recipe.rows}
    for row, config in configs.items():
        for other in needs_of(config).rows:
            if other not in configs:
                raise ConfigError(f"{paper.package} at {scale}: row '{row}' needs a row '{other}', and there is none")
    extra = tuple(load(paper.stages)(scale)) if paper.stages is not None else ()
    return PaperGraph(
        paper,
        recipe,
        configs,
        (*extra, *_robustness(paper, recipe), *_analyses(paper, recipe), *_agreements(paper, recipe)),
    )


def _robustness(paper: Paper, recipe: Recipe) -> Iterable[Stage]:
    modules = [*_modules(paper), *([_module(paper.heads)] if paper.heads is not None else [])]
    for row in recipe.robustness.rows:
        out = f"robustness/{paper.package}/{row}"
        plan = f"results/plan/stages/{paper.package}_robustness-{row}.json"
        code = code_fingerprint([*modules, "vitutor_core.evaluate.shifts"], without=frozenset({"report", "cli"}))
        yield Stage(
            name=f"{paper.package}_robustness",
            item=row,
            command=f"{paper.command} robustness results/runs/{paper.package}/{row} --plan {plan} --out results/{out}",
            outs=(out,),
            rows=(row,),
            group="robustness",
            folders=tuple(f"imagenet-{name}" for name in recipe.robustness.sets),
            plan={"code": code, "sets": list(recipe.robustness.sets)},
        )


def _analyses(paper: Paper, recipe: Recipe) -> Iterable[Stage]:
    for name, rows in recipe.analyses.items():
        out = f"analyses/{paper.package}/{name}"
        runs = " ".join(f"results/runs/{paper.package}/{row}" for row in rows)
        plan = f"results/plan/stages/{paper.package}_analysis-{name}.json"
        code = code_fingerprint(["vitutor_core.jobs.analyse"])
        yield Stage(
            name=f"{paper.package}_analysis",
            item=name,
            command=f"vitutor analyze {runs} --plan {plan} --out results/{out}",
            outs=(out,),
            rows=rows,
            plan={"code": code},
        )


def _agreements(paper: Paper, recipe: Recipe) -> Iterable[Stage]:
    code = code_fingerprint(["vitutor_core.jobs.agreement"])
    for name, of in recipe.agreements.items():
        out = f"analyses/{paper.package}/agreement-{name}"
        runs = [f"results/runs/{paper.package}/{row}" for row in of.rows]
        teachers = [f"results/teachers/{teacher}" for teacher in of.teachers]
        models = [*teachers, *(f"--beside {run}" for run in runs)] if teachers else runs
        plan = f"results/plan/stages/{paper.package}_agreement-{name}.json"
        yield Stage(
            name=f"{paper.package}_agreement",
            item=name,
            command=f"vitutor agreement {' '.join(models)} --plan {plan} --out results/{out}",
            outs=(out,),
            rows=of.rows,
            teachers=of.teachers,
            plan={"code": code},
        )


def _teachers(scale: str, papers: Mapping[str, PaperGraph]) -> dict[str, RunConfig]:
    named = {name for paper in papers.values() for needs in paper.needs.values() for name in needs.teachers}
    named |= {name for paper in papers.values() for stage in paper.stages for name in stage.teachers}
    return {name: resolve(RunConfig, teacher_recipe(scale, name), row=name) for name in sorted(named)}
