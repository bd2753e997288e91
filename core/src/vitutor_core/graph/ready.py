"""Which of the chosen rows cannot run on this machine, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vitutor_core.errors import ConfigError
from vitutor_core.graph.missing import missing_data, missing_weights
from vitutor_core.graph.needs import needs_of
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import check_names, chosen_rows, chosen_stages, planned_config
from vitutor_core.graph.stages import Graph, read_graph
from vitutor_core.schema import RunConfig


def sort_rows(papers: Sequence[str], params: Params) -> tuple[list[str], dict[str, str]]:
    """Return the chosen rows of papers, or of all, that can run here, and the others with what keeps each from it.

    They are called ``PAPER@ROW``. Raises `ConfigError` for a paper that the scale has not.
    """
    graph = read_graph(params.scale)
    left: list[str] = []
    missing: dict[str, str] = {}
    for name in papers or graph.papers:
        if name not in graph.papers:
            raise ConfigError(f"paper '{name}' has no recipe at '{params.scale}', or is not installed")
        for row, reason in obstacles(graph, name, params).items():
            stage = row if "@" in row else f"{name}@{row}"
            if reason is None:
                left.append(stage)
            else:
                missing[stage] = reason
    return left, missing


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
        lacking = [reason for folder in stage.folders for reason in missing_data(f"folder:{folder}")]
        found |= {f"{stage.name}@{stage.item}": reason for reason in lacking[:1]}
    return found


def _lacks(graph: Graph, config: RunConfig) -> Iterator[str]:
    """Yield what a row itself lacks here."""
    source = config.data.source
    yield from (f"data {source}: {reason}" for reason in missing_data(source))
    yield from missing_weights(config)
    for teacher in needs_of(config).teachers:
        source = graph.teachers[teacher].data.source
        yield from (f"teacher {teacher}, data {source}: {reason}" for reason in missing_data(source))
