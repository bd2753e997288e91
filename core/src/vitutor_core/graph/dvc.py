"""Write the dvc.yaml of a scale.

Each stage depends on its file of the plan and on what other stages made. DVC cannot template a list of dependencies,
so the items of ``foreach`` are lists of equal length, filled up by repeating the last entry.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from vitutor_core.config import parse_yaml
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_text
from vitutor_core.graph.needs import Needs, source_name
from vitutor_core.graph.stages import Graph, PaperGraph, Stage

_HEAD = """\
# Written by `vitutor graph`; do not edit: what is run is set in params.yaml, and how in the packages' recipes.
# plan -> data -> teachers -> rows -> evaluation of each row -> table -> report. Every command runs without DVC too.
# Checkpoints live in work/, which is not an output: an interrupted stage resumes.
vars:
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
    foreach:{items}
    do:
      cmd: ${{in}} vitutor data --plan results/plan/data/${{item}}.json --out results/data/${{item}}
      deps: ["results/plan/data/${{item}}.json"]
      outs: ["results/data/${{item}}"]
"""
_TEACHER = """
  teacher:
    foreach:{items}
    do:
      cmd: ${{in}} vitutor teacher ${{key}} --plan results/plan/teachers/${{key}}.json --out results/teachers/${{key}}
      deps: ["results/plan/teachers/${{key}}.json", {deps}]
      outs: ["results/teachers/${{key}}"]
"""
# Published seeds persist: the command itself leaves those alone that are up to date, and trains the others.
_ROWS = """
  {paper}:
    foreach: &{paper}{items}
    do:
      cmd: ${{in}} {command} reproduce ${{key}} --plan results/plan
      deps: ["results/plan/{paper}/${{key}}.json", {deps}]
      outs: [{{"results/runs/{paper}/${{key}}": {{persist: true}}}}]
  {paper}_evaluate:
    foreach: *{paper}
    do:
      cmd: ${{in}} {command} evaluate results/runs/{paper}/${{key}} --plan results/plan
      deps:
        [results/plan/code/{paper}-evaluate.json, "results/plan/{paper}/${{key}}.json", "results/runs/{paper}/${{key}}"]
      outs: ["results/evaluation/{paper}/${{key}}"]
"""
_STAGE = """
  {name}:
    foreach:{items}
    do:
      cmd: ${{in}} {command}
      deps: ["results/plan/stages/{name}-${{key}}.json", {deps}]
      outs: [{outs}]
"""
_REPORT = """
  table:
    foreach:{papers}
    do:
      cmd: ${{in}} vitutor report table ${{key}}
      deps: ["results/plan/code/${{key}}-table.json", {measured}]
      outs: ["results/tables/${{key}}.json", "results/metrics/${{key}}", "results/curves/${{key}}"]
  report:
    foreach:{reports}
    do:
      cmd: ${{in}} vitutor report html ${{key}}
      deps: [results/plan/code/report.json, "results/evaluation/${{key}}", {drawn}]
      outs: ["results/reports/${{key}}"]

metrics: [results/metrics]
plots: [{{results/curves: {{x: epoch, y: top1}}}}]
"""


def dvc_yaml(graph: Graph, *, root: str, is_repository: bool) -> str:
    """Return the text of dvc.yaml for a folder from which ``root`` leads to the repository's.

    DVC ignores files only inside its repository. Elsewhere Python's caches would count as source code, so there the
    plan, which takes seconds, is made each time.
    """
    folders = [f"{root}{package}/src" for package in ("core", *graph.papers)]
    code = f"deps: [{', '.join(folders)}]" if is_repository else "always_changed: true"
    parts = [_HEAD.format(bin=f"{root}.venv/bin", code=code)]
    parts.append(_DATA.format(items=_wrapped([source_name(source) for source in graph.sources], "[", "]")))
    if graph.teachers:
        deps, items = _shared({name: [_data(config.data.source)] for name, config in graph.teachers.items()})
        parts.append(_TEACHER.format(items=_mapping(items), deps=deps))
    for name, paper in graph.papers.items():
        parts += _paper(name, paper)
    measured, papers = _shared({name: _measured(name, paper) for name, paper in graph.papers.items()})
    drawn, reports = _shared({name: _drawn(name, paper) for name, paper in graph.papers.items()})
    parts.append(_REPORT.format(papers=_mapping(papers), measured=measured, reports=_mapping(reports), drawn=drawn))
    return "".join(parts)


def out_of_date(text: str, graph: Graph) -> list[str]:
    """Return the stages of the installed papers that a dvc.yaml lacks or has with other dependencies."""
    written, right = (
        _items(parse_yaml(yaml, where="dvc.yaml")) for yaml in (text, dvc_yaml(graph, root="", is_repository=True))
    )
    return [stage for stage, inputs in right.items() if written.get(stage) != inputs]


def _items(loaded: Any) -> dict[str, set[str]]:
    """Map every ``stage@item`` to its dependencies, however they are written."""
    stages = loaded.get("stages", {}) if isinstance(loaded, dict) else {}
    found = {}
    for name, stage in stages.items():
        items = stage.get("foreach", ())
        for item in items:
            given = items[item] if isinstance(items, dict) else None
            found[f"{name}@{item}"] = {_filled(dep, item, given or ()) for dep in stage["do"]["deps"]}
    return found


def _filled(dep: str, item: str, given: Sequence[str]) -> str:
    """Fill in a dependency as DVC does."""
    named = dep.replace("${key}", item).replace("${item}", item)
    return re.sub(r"\$\{item\[(\d+)\]\}", lambda match: given[int(match[1])], named)


def dvc_text(folder: Path, graph: Graph) -> str:
    """Return the text of ``folder/dvc.yaml``; the repository is the nearest folder above that holds core/."""
    root = root_of(folder)
    return dvc_yaml(graph, root=root, is_repository=root == "")


def write_graph(folder: Path, graph: Graph) -> None:
    """Write ``folder/dvc.yaml``."""
    write_text(folder / "dvc.yaml", dvc_text(folder, graph))


def root_of(folder: Path) -> str:
    """Return the path from ``folder`` to the checkout, ending in a slash, or an empty string for the checkout."""
    here = folder.absolute()
    above = next((n for n, folder in enumerate((here, *here.parents)) if (folder / "core" / "src").is_dir()), 0)
    return "../" * above


def _paper(name: str, paper: PaperGraph) -> list[str]:
    inputs = {row: _inputs(name, needs) for row, needs in paper.needs.items()}
    deps, items = _shared(inputs)
    parts = [_ROWS.format(paper=name, command=paper.paper.command, items=_mapping(items), deps=deps)]
    return [*parts, *(_extra(name, stages) for stages in _by_name(paper.stages).values())]


def _measured(name: str, paper: PaperGraph) -> list[str]:
    """Return what a paper's table is made of: folders, which stand for all the rows below them."""
    has_shifts = any(out.startswith("robustness/") for stage in paper.stages for out in stage.outs)
    return [f"evaluation/{name}", *([f"robustness/{name}"] if has_shifts else [])]


def _drawn(name: str, paper: PaperGraph) -> list[str]:
    """Return what a paper's report shows beside the evaluations."""
    outs = [out for stage in paper.stages for out in stage.outs if not out.startswith(("evaluation/", "robustness/"))]
    return [f"tables/{name}.json", *outs]


def _extra(paper: str, stages: Sequence[Stage]) -> str:
    """Write the stages of one name, whose commands and outputs differ in the name of the item alone."""
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
    return _STAGE.format(
        name=stages[0].name,
        items=_mapping(items),
        command=commands.pop(),
        deps=deps,
        outs=", ".join(f'"results/{out}"' for out in outs.pop()),
    )


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


def _shared(inputs: Mapping[str, Sequence[str]]) -> tuple[str, Mapping[str, Sequence[str]]]:
    """Return the dependencies of a stage as text, those of all its items written once, and what is left per item.

    Dependencies that differ in the item's name alone are written once too.
    """
    templated = {name: [_templated(one, name) for one in own] for name, own in inputs.items()}
    common = [one for one in next(iter(templated.values())) if all(one in own for own in templated.values())]
    rest = {name: [one for one in own if _templated(one, name) not in common] for name, own in inputs.items()}
    written = [f'"results/{one}"' if "$" in one else f"results/{one}" for one in common]
    if any(rest.values()):
        rest = {name: own or list(inputs[name])[:1] for name, own in rest.items()}
        return ", ".join([*written, _slots(rest)]), rest
    return ", ".join(written), rest


def _slots(items: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f'"results/${{item[{n}]}}"' for n in range(_longest(items)))


def _mapping(items: Mapping[str, Sequence[str]]) -> str:
    """Write items with their lists filled up; where none has entries, the names alone."""
    length = _longest(items)
    filled = {name: [*own, *repeat(own[-1], length - len(own))] if own else [] for name, own in items.items()}
    return _wrapped([f"{name}: [{', '.join(own)}]" if own else name for name, own in filled.items()], "{", "}")


def _longest(items: Mapping[str, Sequence[str]]) -> int:
    return max(map(len, items.values()))


def _wrapped(parts: Sequence[str], start: str, end: str) -> str:
    # The first line goes on behind the name of its key.
    text = f"{start}{', '.join(parts)}{end}"
    lines = textwrap.wrap(text, 112, break_long_words=False, break_on_hyphens=False)
    return f" {lines[0]}" if len(lines) == 1 and len(text) < 90 else "\n      " + "\n       ".join(lines)
