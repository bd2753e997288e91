"""Write the plan of a graph, a file for each stage."""

from __future__ import annotations

from pathlib import Path

from vitutor_core.errors import ConfigError
from vitutor_core.files import replace_folder, write_json
from vitutor_core.graph.dvc import out_of_date
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import build_plan
from vitutor_core.graph.stages import read_graph


def write_plan(params: Path, out: Path) -> tuple[int, int]:
    """Write the plan of a ``params.yaml`` into ``out``; return how many stages it has and how many are run.

    Raises `ConfigError` where the ``dvc.yaml`` beside it is not that of the scale's recipes.
    """
    chosen = Params.read(params)
    found = read_graph(chosen.scale)
    built = build_plan(chosen, found)
    written = params.parent / "dvc.yaml"
    if written.exists():
        different = out_of_date(params.parent, found)
        if different:
            raise ConfigError(
                f"{written}: {different[0]} and {len(different) - 1} other stages are not as the recipes of the scale "
                f"'{chosen.scale}' say; run 'vitutor graph --scale {chosen.scale}' there"
            )
    with replace_folder(out, "runtime.json", "*/*.json", "*.json") as partial:
        for name, content in built.items():
            write_json(partial / name, content)
    return len(built), sum(content.get("run", False) for name, content in built.items() if name.count("/") == 1)
