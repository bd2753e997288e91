"""Which of the chosen rows cannot run on this machine, and why."""

from __future__ import annotations

from collections.abc import Iterator

from vitutor_core.data.sources.locate import data_root
from vitutor_core.graph.missing import missing_data, missing_weights
from vitutor_core.graph.needs import needs_of
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import check_names, chosen_rows, chosen_stages, planned_config
from vitutor_core.graph.stages import Graph
from vitutor_core.schema import RunConfig


def obstacles(graph: Graph, package: str, params: Params) -> dict[str, str | None]:
    """Return, for each chosen row of a paper, what keeps it from running, or None; reads no image."""
    check_names(params, graph)
    paper = graph.papers[package]
    rows = chosen_rows(params, paper)
    own = {row: next(_lacks(graph, planned_config(params, paper, row)), None) for row in rows}

    def reason(row: str) -> str | None:
        needed = (f"it needs the row {other}" for other in paper.needs[row].rows if reason(other) is not None)
        return own[row] or next(needed, None)

    found = {row: reason(row) for row in rows}
    for stage in chosen_stages(params, paper, rows):
        lacking = [folder for folder in stage.folders if not (data_root() / folder).is_dir()]
        found |= {f"{stage.name}@{stage.item}": f"no folder {data_root() / folder}" for folder in lacking[:1]}
    return found


def _lacks(graph: Graph, config: RunConfig) -> Iterator[str]:
    """Yield what a row itself lacks here."""
    source = config.data.source
    yield from (f"data {source}: {reason}" for reason in missing_data(source))
    yield from missing_weights(config)
    for teacher in needs_of(config).teachers:
        source = graph.teachers[teacher].data.source
        yield from (f"teacher {teacher}, data {source}: {reason}" for reason in missing_data(source))
