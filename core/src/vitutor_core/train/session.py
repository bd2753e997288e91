"""One training run from config to results: data, method, loop, and the files that explain and publish it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vitutor_core.config import fingerprinted_fields
from vitutor_core.data.build import build_data
from vitutor_core.data.types import Data, DataInfo
from vitutor_core.distill.taught import TaughtLoader, with_stored_logits
from vitutor_core.distributed import Processes, processes, synchronise_batch_norm
from vitutor_core.errors import DataError
from vitutor_core.models.named import named_model
from vitutor_core.models.weights import (
    ModelCard,
    save_model,
    save_tensors,
    starting_weights,
    weights_sha256,
)
from vitutor_core.provenance import git_state, machine, versions
from vitutor_core.runs import Provenance, RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train.dry import check_first_step
from vitutor_core.train.loop import fit
from vitutor_core.train.memory import advise_for_evaluation, advise_for_training
from vitutor_core.train.method import Method
from vitutor_core.train.run_folder import RunFolder
from vitutor_core.train.track import Callback, Tracking

BuildMethod = Callable[[Any, DataInfo], Method]


@dataclass(frozen=True)
class RunLabel:
    """What a run is called in tables: the paper, the row of its table, the scale, and the command that made it."""

    paper: str
    row: str
    scale: str
    command: str
    code: str | None = None
    """Fingerprint of the code that trains, where it was computed."""


def train(
    config: RunConfig,
    build_method: BuildMethod,
    *,
    label: RunLabel,
    out: Path,
    measure: bool = True,
    callbacks: Sequence[Callback] = (),
) -> RunRecord:
    """Train one run into the folder ``out``, resuming what is there, and return its record.

    ``measure`` takes the method's own figures at the end, too; without it they are left to `train.evaluation`.
    ``callbacks`` get what the trackers of ``runtime.track`` get, on the first process.
    """
    tracking = Tracking.of(config.runtime.track, callbacks)
    if config.runtime.threads is not None:
        torch.set_num_threads(config.runtime.threads)
    started = time.monotonic()
    with processes(config.runtime.device) as group, RunFolder(out, owner=group.is_main) as run:
        with closing(tracking), opened(config, build_method, group) as (data, built):
            if not run.is_finished:
                check_first_step(built, config, data.info)
            method = synchronise_batch_norm(built) if config.runtime.sync_batch_norm else built
            if method.traits.classifies and data.info.num_classes < 2:
                raise DataError(f"{data.info.name}: its one class is {data.info.class_names[0]}; to classify takes two")
            identity = identity_of(config, label.paper, data, method)
            session = _session(label, config, group)
            before = run.claim(identity, session)
            group.barrier()
            if run.is_finished:
                return RunRecord.read(run.path)
            with advise_for_training(config, group.device):
                (metrics, correct, _), averaged, spent = fit(
                    method,
                    data,
                    config,
                    run=run,
                    processes=group,
                    identity=identity,
                    tracking=tracking,
                    name=f"{label.paper} {label.row}, seed {config.seed}",
                )
            if measure and method.traits.measures:
                with advise_for_evaluation(config):
                    metrics = metrics | method.report(evaluation=data.evaluation).metrics
        if group.is_main:
            card = model_card(config, data.info, label.paper, metrics)
            save_model(run.files.weights, method.inference_model(), card)
            if averaged is not None:
                own = {name.removeprefix("ema_"): value for name, value in metrics.items() if name.startswith("ema_")}
                save_model(run.files.ema_weights, averaged, model_card(config, data.info, label.paper, own))
            if method.traits.measures and len(method.state_dict()) > len(method.inference_model().state_dict()):
                save_tensors(run.files.method, method.state_dict())
            seconds = round(spent + time.monotonic() - started, 1)
            record = _record(config, data, label, metrics, identity, method)
            record |= {**_provenance(session), "earlier": _others(before, session)}
            record |= {"processes": group.world_size, "threads": torch.get_num_threads(), "seconds": seconds}
            RunRecord.of(**record, correct=correct).write(run.path)
        group.barrier()
        return RunRecord.read(run.path)


@contextmanager
def opened(config: RunConfig, build: BuildMethod, group: Processes) -> Iterator[tuple[Data, Method]]:
    """Yield the data of a run, with the logits that are stored, and its method as it begins; close the loaders."""
    data = build_data(config, device=group.device, rank=group.rank, world_size=group.world_size)
    try:
        torch.manual_seed(config.seed)
        method = build(config, data.info)
        yield with_stored_logits(data, method.logit_teachers, config, group), method
    finally:
        data.train.close()


def identity_of(config: RunConfig, package: str, data: Data, method: Method) -> dict[str, Any]:
    """Return all that decides the result of a run of the paper ``package``."""
    info = data.info
    identity = {
        "method": package,
        "data": info.fingerprint,
        "classes": hashlib.sha256("\n".join(info.class_names).encode()).hexdigest(),
        "teachers": {role: teacher["sha256"] for role, teacher in method.teachers().items()},
        "config": fingerprinted_fields(config),
    }
    if data.contents:
        identity["image files"] = data.contents
    start = config.student.weights
    if start is None and config.student.pretrained and named_model(config.student.name).folder is not None:
        start = config.student.name
    if start is not None:
        identity["start"] = weights_sha256(starting_weights(start))
    return identity


def _session(label: RunLabel, config: RunConfig, group: Processes) -> dict[str, Any]:
    return {
        "started": datetime.now(UTC).isoformat("T", "seconds"),
        "command": label.command,
        **circumstances(label.paper, group),
        "config": config.model_dump(mode="json"),
        "git": git_state(),
        "machine": machine(),
    }


def _provenance(session: dict[str, Any]) -> dict[str, Any]:
    """Return what the process had when it began: a checkout may change while it runs."""
    return {name: session[name] for name in Provenance.model_fields}


def _others(before: Sequence[dict[str, Any]], session: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what earlier sessions of a run had, where it is not what this one has, each once."""
    found: list[dict[str, Any]] = []
    for earlier in map(_provenance, before):
        if earlier not in (*found, _provenance(session)):
            found.append(earlier)
    return found


def circumstances(package: str, group: Processes) -> dict[str, Any]:
    """Return what is not in the config and still decides the last digits of a run's numbers."""
    return {
        "processes": group.world_size,
        "device": group.device.type,
        "threads": torch.get_num_threads(),
        "versions": versions(package),
    }


def model_card(config: RunConfig, info: DataInfo, method: str, metrics: dict[str, float]) -> ModelCard:
    """Describe the student of a run for its weights file."""
    student = named_model(config.student.name)
    kwargs = {**student.kwargs, **config.student.kwargs}
    if student.takes_image_size:
        kwargs.setdefault("img_size", info.image_size)
    return ModelCard(
        name=student.architecture,
        kwargs=kwargs | {"in_chans": info.channels},
        class_names=info.class_names,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        crop_ratio=config.data.crop_ratio,
        interpolation=config.data.interpolation,
        method=method,
        metrics={name: metrics[name] for name in ("top1", "top5", "loss", "ece") if name in metrics},
    )


def fingerprint_of(identity: dict[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an identity: `RunRecord.fingerprint`."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _record(
    config: RunConfig, data: Data, label: RunLabel, metrics: dict[str, float], identity: dict[str, Any], method: Method
) -> dict[str, Any]:
    return {
        "paper": label.paper,
        "row": label.row,
        "scale": label.scale,
        "seed": config.seed,
        "metrics": metrics,
        "epochs": config.train.epochs,
        "updates": config.train.epochs * data.train.steps_per_epoch,
        "train_images": data.info.num_train,
        "fraction": config.data.fraction,
        "own_metrics": method.traits.measures,
        "events": method.report().events,
        "code": label.code,
        "fingerprint": fingerprint_of(identity),
        "data_fingerprint": data.info.fingerprint,
        "teachers": method.teachers(),
        "stored_logits": data.train.facts if isinstance(data.train, TaughtLoader) else None,
        "command": label.command,
        "config": config.model_dump(mode="json"),
    }
