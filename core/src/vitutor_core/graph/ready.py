"""Which of the chosen rows cannot run on this machine, and why: data, weights, network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vitutor_core.data.locate import data_root, locate
from vitutor_core.graph.needs import needs_of, teachers_of
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import check_names, chosen_rows, chosen_stages, planned_config
from vitutor_core.graph.stages import Graph
from vitutor_core.schema import ModelConfig, RunConfig

_HUB = "huggingface.co"
_DOWNLOADED = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}


def obstacles(graph: Graph, package: str, params: Params) -> dict[str, str | None]:
    """Return, for each chosen row of a paper, what keeps it from running, or None; reads no image."""
    check_names(params, graph)
    paper = graph.papers[package]
    found: dict[str, str | None] = {}
    rows = chosen_rows(params, paper)
    for row in rows:
        config = planned_config(params, paper, row)
        reasons = [*_missing_data(config), *_missing_weights(config)]
        for teacher in needs_of(config).teachers:
            reasons += [f"teacher {teacher}: {reason}" for reason in _missing_data(graph.teachers[teacher])]
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


def _missing_data(config: RunConfig) -> Iterator[str]:
    source = config.data.source
    kind, _, argument = source.partition(":")
    folder = {"folder": argument, "parquet": argument, "domainnet": "domainnet"}.get(kind)
    if folder is not None and not locate(folder).exists():
        yield f"data {source}: no folder {data_root() / folder} (VITUTOR_DATA_ROOT names the folder of all data sets)"
    name = argument if kind == "torchvision" else source
    host = _DOWNLOADED.get(name) or ("download.pytorch.org" if kind == "torchvision" else None)
    host = _HUB if kind == "hub" else host
    if host is not None and not (data_root() / name).exists() and not _reaches(host):
        yield f"data {source}: not in {data_root() / name}, and {host} cannot be reached to download it"


def _missing_weights(config: RunConfig) -> Iterator[str]:
    models = [config.student, *(teacher.model for _, teacher in teachers_of(config) if teacher.weights is None)]
    for model in models:
        if model is not None and model.pretrained and model.weights is None:
            yield from _missing_pretrained(model)


def _missing_pretrained(model: ModelConfig) -> Iterator[str]:
    import timm

    import vitutor_core.models  # noqa: F401  # registers ours

    name = model.name
    config = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
    if config is None or not config.has_weights:
        yield f"weights of {name}: timm has none; convert published ones and give their file as student.weights"
    elif not _is_cached(config.hf_hub_id) and not _reaches(_HUB):
        yield f"weights of {name}: not in the cache of the Hugging Face Hub, which cannot be reached"


def _is_cached(repository: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    if repository is None:
        return False
    files = (try_to_load_from_cache(repository, name) for name in ("model.safetensors", "pytorch_model.bin"))
    return any(isinstance(file, str) and Path(file).exists() for file in files)


@cache
def _reaches(host: str) -> bool:
    try:
        with socket.create_connection((host, 443), timeout=3):
            return True
    except OSError:
        return False
