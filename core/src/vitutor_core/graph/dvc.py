"""Write the graph of a scale: dvc.yaml says how each kind of stage is run, and inputs.json what each stage reads.

Each stage depends on its file of the plan and on what other stages made. DVC cannot template a list of dependencies,
so those of the items of a ``foreach`` are lists of equal length, filled up by repeating the last entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path

from vitutor_core.config import parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_text
from vitutor_core.graph.needs import Needs, source_name
from vitutor_core.graph.stages import Graph, PaperGraph, Stage

_HEAD = """\
# Written by `vitutor graph`; do not edit: what is run is set in params.yaml, and how in the packages' recipes.
# plan -> data -> teachers -> rows -> evaluation of each row -> table -> report. Every command runs without DVC too.
# inputs.json, written with it, lists the stages of each kind, and what each of them reads.
# Checkpoints live in work/, which is not an output: an interrupted stage resumes.
vars:
  - inputs.json
  - in: "PATH=$PATH:{bin}"

stages:
  plan:
    cmd: ${{in}} vitutor plan
    {code}
    params: [scale, seeds, preset, set, groups, rows, processes]
    outs: [results/plan]
"""
_DATA = """
  data:
    foreach: ${{inputs.data}}
    do:
      cmd: ${{in}} vitutor data --plan results/plan/data/${{key}}.json --out results/data/${{key}}
      deps: ["results/plan/data/${{key}}.json"]
      outs: ["results/data/${{key}}"]
"""
_TEACHER = """
  teacher:
    foreach: ${{inputs.teacher}}
    do:
      cmd: ${{in}} vitutor teacher ${{key}} --plan results/plan/teachers/${{key}}.json --out results/teachers/${{key}}
      deps: ["results/plan/teachers/${{key}}.json", {deps}]
      outs: ["results/teachers/${{key}}"]
"""
# Published seeds persist: the command itself leaves those alone that are up to date, and trains the others.
_ROWS = """
  {paper}:
    foreach: ${{inputs.{paper}}}
    do:
      cmd: ${{in}} {command} reproduce ${{key}} --plan results/plan
      deps: ["results/plan/{paper}/${{key}}.json", {deps}]
      outs: [{{"results/runs/{paper}/${{key}}": {{persist: true}}}}]
  {paper}_evaluate:
    foreach: ${{inputs.{paper}}}
    do:
      cmd: ${{in}} {command} evaluate results/runs/{paper}/${{key}} --plan results/plan
      deps:
        [results/plan/code/{paper}-evaluate.json, "results/plan/{paper}/${{key}}.json", "results/runs/{paper}/${{key}}"]
      outs: ["results/evaluation/{paper}/${{key}}"]
"""
_STAGE = """
  {name}:
    foreach: ${{inputs.{name}}}
    do:
      cmd: ${{in}} {command}
      deps: ["results/plan/stages/{name}-${{key}}.json", {deps}]
      outs: [{outs}]
"""
_REPORT = """
  table:
    foreach: ${{inputs.table}}
    do:
      cmd: ${{in}} vitutor report table ${{key}}
      deps: ["results/plan/code/${{key}}-table.json", {measured}]
      outs: ["results/tables/${{key}}.json", "results/metrics/${{key}}", "results/curves/${{key}}"]
  report:
    foreach: ${{inputs.report}}
    do:
      cmd: ${{in}} vitutor report html ${{key}}
      deps: [results/plan/code/report.json, "results/evaluation/${{key}}", {drawn}]
      outs: ["results/reports/${{key}}"]

metrics: [results/metrics]
plots: [{{results/curves: {{x: epoch, y: top1}}}}]
"""


GRAPH_FILES = ("dvc.yaml", "inputs.json")
Items = dict[str, dict[str, list[str]]]
"""The items of each ``foreach``, and what they read: paths below the folder of results."""


def graph_files(graph: Graph, *, root: str, is_repository: bool) -> dict[str, str]:
    """Return the texts of dvc.yaml and inputs.json for a folder from which ``root`` leads to the repository's.

    DVC ignores files only inside its repository. Elsewhere Python's caches would count as source code, so there the
    plan, which takes seconds, is made each time.
    """
    folders = [f"{root}{package}/src" for package in ("core", *graph.papers)]
    code = f"deps: [{', '.join(folders)}]" if is_repository else "always_changed: true"
    parts = [_HEAD.format(bin=f"{root}.venv/bin", code=code), _DATA.format()]
    inputs: Items = {"data": {source_name(source): [] for source in graph.sources}}
    if graph.teachers:
        deps, inputs["teacher"] = _shared({name: [_data(one.data.source)] for name, one in graph.teachers.items()})
        parts.append(_TEACHER.format(deps=deps))
    for name, paper in graph.papers.items():
        deps, inputs[name] = _shared({row: _inputs(name, needs) for row, needs in paper.needs.items()})
        parts.append(_ROWS.format(paper=name, command=paper.paper.command, deps=deps))
        for stage, stages in _by_name(paper.stages).items():
            text, inputs[stage] = _extra(name, stages)
            parts.append(text)
    measured, inputs["table"] = _shared({name: _measured(name, paper) for name, paper in graph.papers.items()})
    drawn, inputs["report"] = _shared({name: _drawn(name, paper) for name, paper in graph.papers.items()})
    parts.append(_REPORT.format(measured=measured, drawn=drawn))
    return {"dvc.yaml": "".join(parts), "inputs.json": _json(inputs)}


def out_of_date(folder: Path, graph: Graph) -> list[str]:
    """Return the stages of the installed papers that the graph in ``folder`` lacks or has with other dependencies."""
    written = {name: (folder / name).read_text() for name in GRAPH_FILES if (folder / name).exists()}
    wanted = graph_files(graph, root="", is_repository=True)
    if written == wanted:
        return []
    found, right = _stages(written), _stages(wanted)
    return [stage for stage, inputs in right.items() if found.get(stage) != inputs]


def _stages(texts: Mapping[str, str]) -> dict[str, set[str]]:
    """Map every ``stage@item`` of a graph's files to its dependencies."""
    graph, listed = (parse_yaml(texts.get(name, "{}"), where=name) for name in GRAPH_FILES)
    found = {}
    for name, stage in graph.get("stages", {}).items():
        kind = str(stage.get("foreach", "")).removeprefix("${inputs.").removesuffix("}")
        for item, given in listed.get("inputs", {}).get(kind, {}).items():
            found[f"{name}@{item}"] = {_filled(dep, item, given) for dep in stage["do"]["deps"]}
    return found


def _filled(dep: str, item: str, given: Sequence[str]) -> str:
    """Fill in a dependency as DVC does."""
    return re.sub(r"\$\{item\[(\d+)\]\}", lambda match: given[int(match[1])], dep.replace("${key}", item))


def texts_of(folder: Path, graph: Graph) -> dict[str, str]:
    """Return the graph's files for ``folder``; the repository is the nearest folder above that holds core/."""
    root = root_of(folder)
    return graph_files(graph, root=root, is_repository=root == "")


def write_graph(folder: Path, graph: Graph) -> list[Path]:
    """Write ``folder/dvc.yaml`` and ``folder/inputs.json``, and return them."""
    texts = texts_of(folder, graph)
    for name, text in texts.items():
        write_text(folder / name, text)
    return [folder / name for name in texts]


def check_graph(folder: Path, graph: Graph) -> None:
    """Raise `ConfigError` unless the graph in ``folder`` is that of the recipes."""
    for name, text in texts_of(folder, graph).items():
        path = folder / name
        if not path.exists() or path.read_text() != text:
            again = f"vitutor graph --scale {graph.scale} --folder {folder}"
            raise ConfigError(f"{path}: not what the recipes say; run '{again}'")


def root_of(folder: Path) -> str:
    """Return the path from ``folder`` to the checkout, ending in a slash, or an empty string for the checkout."""
    here = folder.absolute()
    above = next((n for n, folder in enumerate((here, *here.parents)) if (folder / "core" / "src").is_dir()), 0)
    return "../" * above


def _measured(name: str, paper: PaperGraph) -> list[str]:
    """Return what a paper's table is made of: folders, which stand for all the rows below them."""
    has_shifts = any(out.startswith("robustness/") for stage in paper.stages for out in stage.outs)
    return [f"evaluation/{name}", *([f"robustness/{name}"] if has_shifts else [])]


def _drawn(name: str, paper: PaperGraph) -> list[str]:
    """Return what a paper's report shows beside the evaluations."""
    outs = [out for stage in paper.stages for out in stage.outs if not out.startswith(("evaluation/", "robustness/"))]
    return [f"tables/{name}.json", *outs]


def _extra(paper: str, stages: Sequence[Stage]) -> tuple[str, dict[str, list[str]]]:
    """Return the text of the stages of one name, whose commands and outputs differ in the name of the item alone."""
    inputs = {
        stage.item: [
            *(_data(source) for source in stage.sources),
            *(f"teachers/{teacher}" for teacher in stage.teachers),
            *(f"runs/{paper}/{row}" for row in stage.rows),
            *stage.inputs,
        ]
        or [f"plan/stages/{stage.name}-{stage.item}.json"]
        for stage in stages
    }
    deps, items = _shared(inputs)
    commands = {_templated(stage.command, stage.item) for stage in stages}
    outs = {tuple(_templated(out, stage.item) for out in stage.outs) for stage in stages}
    if len(commands) > 1 or len(outs) > 1:
        raise ConfigError(f"stages {stages[0].name}: commands and outputs may differ in the item's name alone")
    written = ", ".join(f'"results/{out}"' for out in outs.pop())
    return _STAGE.format(name=stages[0].name, command=commands.pop(), deps=deps, outs=written), items


def _templated(text: str, item: str) -> str:
    """Put DVC's name of the key where the name of an item stands as a word of its own."""
    return re.sub(rf"(?<!\w){re.escape(item)}(?!\w)", "${key}", text)


def _inputs(paper: str, needs: Needs) -> list[str]:
    images = [needs.images.removeprefix("results/")] if needs.images is not None else []
    teachers = [f"teachers/{name}" for name in needs.teachers]
    return [_data(needs.source), *teachers, *(f"runs/{paper}/{row}" for row in needs.rows), *images]


def _data(source: str) -> str:
    return f"data/{source_name(source)}"


def _by_name(stages: Sequence[Stage]) -> Mapping[str, list[Stage]]:
    names = dict.fromkeys(stage.name for stage in stages)
    return {name: [stage for stage in stages if stage.name == name] for name in names}


def _shared(inputs: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, list[str]]]:
    """Return the dependencies of a stage as text, those of all its items written once, and what is left per item.

    Dependencies that differ in the item's name alone are written once too.
    """
    templated = {name: [_templated(one, name) for one in own] for name, own in inputs.items()}
    common = [one for one in next(iter(templated.values())) if all(one in own for own in templated.values())]
    rest = {name: [one for one in own if _templated(one, name) not in common] for name, own in inputs.items()}
    length = max(map(len, rest.values()))
    written = [f'"results/{one}"' if "$" in one else f"results/{one}" for one in common]
    written += [f'"results/${{item[{n}]}}"' for n in range(length)]
    return ", ".join(written), {name: _padded(own or inputs[name], length) for name, own in rest.items()}


def _padded(own: Sequence[str], length: int) -> list[str]:
    return [*own[:length], *repeat(own[-1], length - len(own))]


def _json(inputs: Items) -> str:
    """Write a stage a line."""
    groups = []
    for name, items in inputs.items():
        lines = ",\n".join(f"      {json.dumps(item)}: {json.dumps(own)}" for item, own in items.items())
        groups.append(f"    {json.dumps(name)}: {{\n{lines}\n    }}")
    return '{\n  "inputs": {\n' + ",\n".join(groups) + "\n  }\n}\n"
