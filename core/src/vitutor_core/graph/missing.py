"""What a row would read and this machine lacks: data, published weights, a network to fetch them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vitutor_core.data.sources.locate import ROOT_HINT, data_root, locate
from vitutor_core.errors import VitutorError
from vitutor_core.graph.needs import teachers_of
from vitutor_core.schema import ModelConfig, RunConfig

_HUB = "huggingface.co"
_HOSTS = {"cifar10": _HUB, "cifar100": _HUB, "hub": _HUB, "torchvision": "download.pytorch.org"}


def missing_data(source: str) -> Iterator[str]:
    """Yield why a data source cannot be opened here; reads no image."""
    kind, _, argument = source.partition(":")
    folder = {"folder": argument, "parquet": argument, "coco": argument, "domainnet": "domainnet"}.get(kind)
    if folder is not None and _is_empty(locate(folder)):
        yield f"no images in {data_root() / folder} {ROOT_HINT}"
    name = argument if kind == "torchvision" else source
    host = _HOSTS.get(kind)
    if host is not None and _is_empty(data_root() / name) and not _reaches(host):
        yield f"not in {data_root() / name} {ROOT_HINT}, and {host} cannot be reached to download it"


def _is_empty(path: Path) -> bool:
    """Whether nothing is there: an empty folder is what a failed download leaves."""
    return not any(path.iterdir()) if path.is_dir() else not path.exists()


def missing_weights(config: RunConfig) -> Iterator[str]:
    """Yield which published weights a row starts from or is taught by that cannot be had here."""
    models = [config.student, *(teacher.model for _, teacher in teachers_of(config) if teacher.weights is None)]
    for model in models:
        if model is not None and model.pretrained and model.weights is None:
            yield from _missing_pretrained(model)


def _missing_pretrained(model: ModelConfig) -> Iterator[str]:
    import vitutor_core.models  # noqa: F401  # registers ours
    from vitutor_core.models.named import named_model

    name = model.name
    try:
        found = named_model(name)
    except VitutorError as error:
        yield f"weights of {name}: {error}"
        return
    config = found.cfg
    if found.folder is not None:
        return
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
