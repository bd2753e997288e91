"""Which of the chosen rows cannot run on this machine, and why: data, weights, network."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vitutor_core.data.locate import data_root, locate
from vitutor_core.graph.needs import needs_of, teachers_of
from vitutor_core.graph.params import Params
from vitutor_core.graph.plan import check_names, chosen_rows
from vitutor_core.graph.stages import Graph
from vitutor_core.schema import ModelConfig, RunConfig

_HUB = "huggingface.co"
_DOWNLOADED = {"cifar10": "www.cs.toronto.edu", "cifar100": "www.cs.toronto.edu"}


@dataclass(frozen=True)
class Obstacle:
    """Why a row cannot run."""

    row: str
    reason: str


def obstacles(graph: Graph, package: str, params: Params) -> list[Obstacle]:
    """Return what keeps chosen rows of a paper from running, one reason per row; reads no image."""
    check_names(params, graph)
    paper = graph.papers[package]
    found = []
    for row in chosen_rows(params, paper):
        config = paper.configs[row]
        reasons = [*_missing_data(config), *_missing_weights(config)]
        for teacher in needs_of(config).teachers:
            reasons += [f"teacher {teacher}: {reason}" for reason in _missing_data(graph.teachers[teacher])]
        found += [Obstacle(f"{package}@{row}", reason) for reason in reasons[:1]]
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
