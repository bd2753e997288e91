"""The plan of a graph: for each stage, everything that decides its result but data and weights, in a small file.

Stages depend on their file, so what reruns is exactly what changed: a comment changes no file, a hyper-parameter
changes the files of its rows, a metric those of evaluations.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from vitutor_core.config import fingerprinted_fields, nearest, parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.files import replace_folder, write_json
from vitutor_core.graph.code import MEASURING, code_fingerprint
from vitutor_core.graph.dvc import out_of_date
from vitutor_core.graph.missing import missing_data
from vitutor_core.graph.needs import needs_of, source_name
from vitutor_core.graph.params import Params
from vitutor_core.graph.stages import Graph, PaperGraph, Stage, evaluation_code, read_graph, train_code
from vitutor_core.recipe import CORE_GROUP
from vitutor_core.schema import RunConfig

TABLE_CODE = ("vitutor_core.report.table", "vitutor_core.report.results", "vitutor_core.report.metrics")
REPORT_CODE = (
    *TABLE_CODE,
    "vitutor_core.report.html",
    "vitutor_core.report.plots",
    "vitutor_core.report.analyses",
    "vitutor_core.report.gallery",
    "vitutor_core.report.render",
)

Plan = dict[str, dict[str, Any]]
"""The content of each file of a plan, by its name relative to the plan's folder."""


def build_plan(params: Params, graph: Graph) -> Plan:
    """Return the plan of a graph; raises `ConfigError` for params that name what is not there."""
    check_names(params, graph)
    chosen = {name: chosen_rows(params, paper) for name, paper in graph.papers.items()}
    stages = {name: chosen_stages(params, paper, chosen[name]) for name, paper in graph.papers.items()}
    plan: Plan = {"runtime.json": {"processes": params.processes}}
    for name, paper in graph.papers.items():
        plan |= _rows(paper, params, chosen[name])
        for stage in paper.stages:
            on = stage in stages[name]
            plan[f"stages/{stage.name}-{stage.item}.json"] = (
                {"run": True, **stage.plan} if on else _off("no row needs it")
            )
        plan[f"code/{name}-evaluate.json"] = {"code": evaluation_code(paper.paper)}
        plan[f"code/{name}-table.json"] = {"code": code_fingerprint(TABLE_CODE), "printed": _printed(name)}
    plan["code/report.json"] = {"code": code_fingerprint(REPORT_CODE)}
    sources, teachers = _needed(graph, chosen, [stage for own in stages.values() for stage in own])
    return plan | _teachers(graph, params, teachers) | _data(graph, sources)


def check_names(params: Params, graph: Graph) -> None:
    """Raise `ConfigError` for rows, groups or a preset that no recipe of the graph has."""
    recipes = [paper.recipe for paper in graph.papers.values()]
    rows = [row for recipe in recipes for row in recipe.rows]
    rows += [f"{name}@{row}" for name, paper in graph.papers.items() for row in paper.recipe.rows]
    groups = {CORE_GROUP, *(group for recipe in recipes for group in recipe.groups)}
    groups |= {stage.group for paper in graph.papers.values() for stage in paper.stages}
    presets = sorted({preset for recipe in recipes for preset in recipe.presets})
    preset = () if params.preset is None else (params.preset,)
    for kind, named, known in (
        ("rows", params.rows, rows),
        ("groups", params.groups, sorted(groups)),
        ("preset", preset, presets),
    ):
        for name in named:
            if name not in known:
                hint = nearest(name, known) or ("" if kind == "rows" else f"; it has {', '.join(known) or 'none'}")
                raise ConfigError(f"{kind}: the scale '{graph.scale}' has no '{name}'{hint}")


def chosen_rows(params: Params, paper: PaperGraph) -> list[str]:
    """Return the rows that are run: those named, else those of the groups, and what they need."""
    named = _named(params, paper)
    if named is not None:
        waiting = [row for row in paper.configs if row in named]
    else:
        waiting = [row for row in paper.configs if paper.recipe.group_of(row) in params.groups]
    makers = {out: stage for stage in paper.stages for out in stage.outs}
    chosen: set[str] = set()
    while waiting:
        row = waiting.pop()
        if row in chosen:
            continue
        chosen.add(row)
        needs = paper.needs[row]
        waiting += needs.rows
        maker = None if needs.images is None else makers.get(needs.images.removeprefix("results/"))
        waiting += () if maker is None else maker.rows
    return [row for row in paper.configs if row in chosen]


def _named(params: Params, paper: PaperGraph) -> set[str] | None:
    """Return the rows that params name of a paper; None where they name only rows of other papers, or no row."""
    plain = [row for row in params.rows if "@" not in row]
    package = f"{paper.paper.package}@"
    own = [row.removeprefix(package) for row in params.rows if row.startswith(package)]
    return {*plain, *own} if plain or own else None


def planned_config(params: Params, paper: PaperGraph, row: str) -> RunConfig:
    """Resolve a row with the preset, if the recipe has it, and the settings of params.

    Raises `ConfigError` where these change what the row needs, which the graph has written down.
    """
    preset = params.preset if params.preset in paper.recipe.presets else None
    config = paper.paper.resolve(params.scale, None, row, params.set, preset=preset)
    if needs_of(config) != paper.needs[row]:
        raise ConfigError(f"row '{row}': preset or set change the data, teachers or rows that it needs; use a recipe")
    return config


def chosen_stages(params: Params, paper: PaperGraph, rows: list[str]) -> list[Stage]:
    """Return the paper's own stages that are run: those whose output a chosen row needs, and those that can be."""
    needed = {paper.needs[row].images for row in rows}
    chosen: list[Stage] = []
    for stage in paper.stages:
        outs = {f"results/{out}" for out in stage.outs}
        made = {out for other in chosen for out in other.outs}
        is_shown = bool(stage.rows) and set(stage.rows) <= set(rows) and set(stage.inputs) <= made
        if outs & needed or (is_shown and stage.group in params.groups):
            chosen.append(stage)
    return chosen


def seeds_of(row: str, paper: PaperGraph, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return the seeds of a row: of one that teaches other rows, and starts none, seed 0 is enough."""
    needs = paper.needs.values()
    teaches = any(row in other.teacher_rows for other in needs)
    starts = any(row in other.starts for other in needs)
    return seeds if not teaches else tuple(sorted({0, *seeds})) if starts else (0,)


def _rows(paper: PaperGraph, params: Params, chosen: list[str]) -> Plan:
    plan: Plan = {}
    code = train_code(paper.paper)
    preset = params.preset if params.preset in paper.recipe.presets else None
    for row in paper.configs:
        if row not in chosen:
            group = paper.recipe.group_of(row)
            why = "not among `rows`" if _named(params, paper) is not None else f"group '{group}' is not among `groups`"
            content = _off(f"{why} in params.yaml")
        else:
            fields = fingerprinted_fields(planned_config(params, paper, row))
            identity = {path: value for path, value in fields.items() if path != "seed"}
            content = {
                "run": True,
                "scale": params.scale,
                "preset": preset,
                "set": list(params.set),
                "seeds": list(seeds_of(row, paper, params.seeds)),
                "code": code,
                "config": identity,
            }
        plan[f"{paper.paper.package}/{row}.json"] = content
    return plan


def _needed(graph: Graph, chosen: Mapping[str, list[str]], stages: list[Stage]) -> tuple[set[str], set[str]]:
    """Return the data sources and the teachers that chosen rows and stages need, and the sources of these teachers."""
    rows = [graph.papers[name].needs[row] for name, own in chosen.items() for row in own]
    teachers = {name for needs in rows for name in needs.teachers} | {name for one in stages for name in one.teachers}
    sources = {needs.source for needs in rows} | {source for stage in stages for source in stage.sources}
    return sources | {graph.teachers[teacher].data.source for teacher in teachers}, teachers


def _teachers(graph: Graph, params: Params, needed: set[str]) -> Plan:
    code = code_fingerprint(["vitutor_core.train.supervised", "vitutor_core.train.session"], without=MEASURING)
    plan: Plan = {}
    for name, config in graph.teachers.items():
        content = {"run": True, "scale": params.scale, "code": code, "config": fingerprinted_fields(config)}
        plan[f"teachers/{name}.json"] = content if name in needed else _off("no row needs it")
    return plan


def _data(graph: Graph, needed: set[str]) -> Plan:
    code = code_fingerprint(["vitutor_core.data.check"])
    plan: Plan = {}
    for source in graph.sources:
        # Rows of other papers may need it: its absence is left to those rows, so that it stops no others.
        missing = next(missing_data(source), None) if source in needed else "no row needs it"
        content = {"run": True, "code": code} if missing is None else _off(missing)
        plan[f"data/{source_name(source)}.json"] = content | {"source": source}
    return plan


def _printed(package: str) -> str:
    """Return the SHA-256 of what a paper prints, without comments and layout."""
    path = Path(str(files(package))) / "paper_results.yaml"
    return _values_hash(path.read_text(encoding="utf-8"), path) if path.is_file() else ""


@cache
def _values_hash(text: str, path: Path) -> str:
    try:
        values = YAML(typ="safe").load(text)  # in C where that is installed, four times as fast
    except YAMLError:  # C knows less of YAML 1.2
        values = parse_yaml(text, where=str(path))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _off(why: str) -> dict[str, Any]:
    return {"run": False, "why": why}


def write_plan(params: Path, out: Path) -> tuple[int, int]:
    """Write the plan of a ``params.yaml`` into ``out``; return how many stages it has and how many are run.

    Raises `ConfigError` where the ``dvc.yaml`` beside it is not that of the scale's recipes.
    """
    chosen = Params.read(params)
    found = read_graph(chosen.scale)
    built = build_plan(chosen, found)
    written = params.parent / "dvc.yaml"
    if written.exists() and (different := out_of_date(params.parent, found)):
        raise ConfigError(
            f"{written}: {different[0]} and {len(different) - 1} other stages are not as the recipes of the scale "
            f"'{chosen.scale}' say; run 'vitutor graph --scale {chosen.scale}' there"
        )
    with replace_folder(out, "runtime.json", "*/*.json", "*.json") as partial:
        for name, content in built.items():
            write_json(partial / name, content)
    return len(built), sum(content.get("run", False) for name, content in built.items() if name.count("/") == 1)
