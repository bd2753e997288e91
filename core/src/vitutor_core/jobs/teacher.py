"""Train teachers from the recipes of core and of the papers: one row per teacher, at each scale."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import Any, TypeVar

from vitutor_core.config import differences, fingerprinted_fields, setting
from vitutor_core.errors import CheckpointError, ConfigError, named
from vitutor_core.files import discard
from vitutor_core.graph.needs import teachers_of
from vitutor_core.paper import teacher_recipe
from vitutor_core.recipe import resolve
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import DataConfig, RunConfig
from vitutor_core.terminal import command_line, say

RunConfigT = TypeVar("RunConfigT", bound=RunConfig)
_INHERITED = {
    "data": (
        *("source", "image_column", "label_column", "class_list", "eval_split", "holdout", "holdout_seed", "balance"),
        *("image_size", "crop_ratio", "interpolation", "loader"),
    ),
    "runtime": ("device", "threads", "workers"),
}
"""What a teacher has of its student: the images and how they are read, and the machine."""


def train_teacher(
    scale: str,
    name: str,
    out: Path,
    *,
    recipe: Path | None = None,
    settings: tuple[str, ...] = (),
    work: Path | None = None,
) -> float:
    """Train one teacher with plain supervision and return its top-1 accuracy in percent."""
    config = resolved(scale, name, settings, recipe)
    if work is not None:
        RunDir(out).check_target()
    from vitutor_core.train.session import RunLabel, train
    from vitutor_core.train.supervised import Supervised

    run = out
    if work is not None:
        key = config.fingerprint()[:12]
        run = work / "teachers" / scale / f"{name}-{key}"
    label = RunLabel("supervised", name, scale, command_line("vitutor"))
    record = train(config, Supervised.build, label=label, out=run)
    if work is not None:
        RunDir(run).publish(out)
        discard(run)
    return record.metrics["top1"]


def with_teachers(
    config: RunConfigT, scale: str, folder: Path, *, settings: tuple[str, ...] = (), method: str | None = None
) -> RunConfigT:
    """Train, unless they are there, the teachers that a config names by recipe, and fill in where they are.

    A teacher sees the same source as the student, whole but for what is held out, in the same way; ``settings`` change
    its recipe further. With ``method``, as `Paper.method`, the first step of the run that needs them is tried before.
    """
    wanted = [(path, of.recipe) for path, of in teachers_of(config) if of.recipe is not None and of.weights is None]
    if method is not None and any(not RunDir(folder / name).metrics.exists() for _, name in wanted):
        from vitutor_core.jobs.preflight import check_run

        check_run(config, method, {path: teacher_config(config, scale, name, settings) for path, name in wanted})
    found = []
    for path, name in wanted:
        given = (*inherited(config), *settings)
        with named(f"teacher {name}", _how_to_set(path, scale, name, given)):
            run = trained_teacher(scale, name, folder, settings=given, largest_batch=config.train.batch_size)
        found.append(setting(f"{path}.weights", str(run)))
    return config.changed(found)


def teacher_config(config: RunConfig, scale: str, name: str, settings: tuple[str, ...] = ()) -> RunConfig:
    """Return the config of the teacher ``name`` for the images of the student's ``config``."""
    with named(f"teacher {name}"):
        return resolved(scale, name, (*inherited(config), *settings))


def recipe_teachers(config: RunConfig, scale: str) -> dict[str, RunConfig]:
    """Return the configs of the teachers that a config names by recipe, by their names."""
    names = dict.fromkeys(of.recipe for _, of in teachers_of(config) if of.recipe is not None and of.weights is None)
    return {name: teacher_config(config, scale, name) for name in names}


def inherited(config: RunConfig) -> tuple[str, ...]:
    """Return the settings that a teacher, or a row that comes first, has of its student."""
    return tuple(
        setting(f"{section}.{name}", getattr(getattr(config, section), name))
        for section, names in _INHERITED.items()
        for name in names
    )


def _how_to_set(path: str, scale: str, name: str, given: tuple[str, ...]) -> str:
    """Say what sets the fields of a teacher: the data as its student's do, everything else a command of its own."""
    try:
        usual = inherited(resolved(scale, name, ()))
    except ConfigError:
        return ""  # there is no such teacher
    changed = (text for text in given if text not in usual and not text.startswith("runtime."))
    words = ["vitutor", "teacher", name, "--scale", scale, *(word for text in changed for word in ("--set", text))]
    return f"to set it, run `{shlex.join(words)} --set FIELD=VALUE --out DIR`, and give --set {path}.weights=DIR here"


def resolved(scale: str, name: str, settings: tuple[str, ...], recipe: Path | None = None) -> RunConfig:
    """Return the config of the teacher ``name`` of a recipe, by default of the one that has it."""
    return resolve(RunConfig, recipe or teacher_recipe(scale, name), row=name, settings=settings)


def trained_teacher(
    scale: str, name: str, folder: Path, *, settings: tuple[str, ...] = (), largest_batch: int | None = None
) -> Path:
    """Return the run of a teacher recipe below ``folder``, trained first unless it is there.

    A teacher of the same name that was trained by another config or on other images stays, and one of the right kind
    lies beside it, in a folder with a key in its name. Where its images are fewer than its batch, the batch is as
    large as they are, or ``largest_batch`` if that is less.
    """
    config = resolved(scale, name, settings)
    count, images = _images(config.data)
    if fitting := _fitting(config, count, largest_batch):
        say(f"teacher {name}: {fitting[0]} instead of {config.train.batch_size}, of {count} images", err=True)
        settings = (*settings, *fitting)
        config = resolved(scale, name, settings)
    run = RunDir((folder / name).absolute())
    before = _decided_by(run)
    if before is not None:
        now = fingerprinted_fields(config) | {"data": images or before["data"]}
        changed = differences(before, now)
        if changed:
            key = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:12]
            say(f"teacher {name}: {run.path} is another ({'; '.join(changed)}); taking {name}-{key}", err=True)
            run = RunDir(run.path.with_name(f"{name}-{key}"))
    if run.metrics.exists():
        RunRecord.read(run.path, "supervised")
    else:
        train_teacher(scale, name, run.path, settings=settings)
    return run.path


def fitting_batch(config: RunConfig, largest_batch: int | None = None) -> tuple[str, ...]:
    """Return the setting that makes a teacher's batch as large as its images are, where they are fewer."""
    return _fitting(config, _images(config.data)[0], largest_batch)


def _fitting(config: RunConfig, count: int | None, largest_batch: int | None) -> tuple[str, ...]:
    if count is None or config.train.batch_size <= count or config.train.epoch_length == "full":
        return ()
    return (setting("train.batch_size", min(count, largest_batch or count)),)


def _decided_by(run: RunDir) -> dict[str, Any] | None:
    """Return the fields of the config of a teacher, finished or begun, and the fingerprint of its images."""
    if run.metrics.exists():
        record = RunRecord.read(run.path)
        config = RunConfig.from_mapping(record.config, where=str(run.metrics))
        return fingerprinted_fields(config) | {"data": record.data_fingerprint}
    begun = run.path / "run.json"
    if not begun.exists():
        return None
    try:
        identity = json.loads(begun.read_text())["identity"]
        return {**identity["config"], "data": identity["data"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise CheckpointError(f"{begun}: not readable; delete its folder, and it is trained again") from None


def _images(config: DataConfig) -> tuple[int | None, str]:
    """Return how many images a teacher trains on, and their fingerprint, where a user can change either."""
    if ":" not in config.source and config.class_list is None and config.holdout is None:
        return None, ""
    from vitutor_core.data.sources.open import open_source
    from vitutor_core.data.sources.subsets import fingerprint, subset_indices

    source = open_source(config)
    indices = subset_indices(source.train.labels, config)
    return len(indices), fingerprint(source, indices)
