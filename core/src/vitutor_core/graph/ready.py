"""Which of the chosen rows cannot run on this machine, and why."""

from __future__ import annotations

from vitutor_core.data.locate import data_root
from vitutor_core.graph.missing import missing_data, missing_weights
from vitutor_core.graph.needs import needs_of
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import check_names, chosen_rows, chosen_stages, planned_config
from vitutor_core.graph.stages import Graph


def obstacles(graph: Graph, package: str, params: Params) -> dict[str, str | None]:
    """Return, for each chosen row of a paper, what keeps it from running, or None; reads no image."""
    check_names(params, graph)
    paper = graph.papers[package]
    found: dict[str, str | None] = {}
    rows = chosen_rows(params, paper)
    for row in rows:
        config = planned_config(params, paper, row)
        source = config.data.source
        reasons = [*(f"data {source}: {reason}" for reason in missing_data(source)), *missing_weights(config)]
        for teacher in needs_of(config).teachers:
            source = graph.teachers[teacher].data.source
            reasons += [f"teacher {teacher}, data {source}: {reason}" for reason in missing_data(source)]
        found[row] = next(iter(reasons), None)
    for stage in chosen_stages(params, paper, rows):
        lacking = [folder for folder in stage.folders if not (data_root() / folder).is_dir()]
        found |= {f"{stage.name}@{stage.item}": f"no folder {data_root() / folder}" for folder in lacking[:1]}
    # A row that needs one of them cannot run either; needs are at most as deep as there are rows.
    for _ in rows:
        for row in rows:
            blocked = [other for other in needs_of(paper.configs[row]).rows if found.get(other) is not None]
            if found[row] is None and blocked:
                found[row] = f"it needs the row {blocked[0]}"
    return found
