"""Train teachers from the recipes of core and of the papers: one row per teacher, at each scale."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import click

from vitutor_core.cli import options
from vitutor_core.cli.stage import left_out
from vitutor_core.config import differences, identity_fields, setting
from vitutor_core.errors import CheckpointError
from vitutor_core.files import discard
from vitutor_core.graph.needs import teachers_of
from vitutor_core.graph.planned import read_planned
from vitutor_core.paper import teacher_recipe
from vitutor_core.recipe import resolve
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import DataConfig, RunConfig

RunConfigT = TypeVar("RunConfigT", bound=RunConfig)


@click.command("teacher")
@click.argument("name")
@options.scale
@options.recipe
@options.settings
@click.option(
    "--work",
    type=options.PathOption(file_okay=False),
    help="Train there, in a folder named by the fingerprint.  [default: OUT; work under a plan]",
)
@options.stage_plan
@options.out()
def teacher(
    name: str,
    scale: str,
    recipe: Path | None,
    settings: tuple[str, ...],
    work: Path | None,
    plan: Path | None,
    out: Path,
) -> None:
    """Train the teacher NAME of a recipe into OUT."""
    if left_out(plan, f"{name}: not trained", out):
        return
    if plan is not None:
        scale, work = read_planned(plan)["scale"], work or Path("work")
    result = train_teacher(scale, name, out, recipe=recipe, settings=settings, work=work)
    click.echo(f"{name}: top-1 {result:.2f} %; {out}")


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
    config = resolve(RunConfig, recipe or teacher_recipe(scale, name), row=name, settings=settings)
    if work is not None:
        RunDir(out).check_target()
    from vitutor_core.train.session import RunLabel, train
    from vitutor_core.train.supervised import Supervised

    run = out
    if work is not None:
        key = config.fingerprint()[:12]
        run = work / "teachers" / scale / f"{name}-{key}"
    label = RunLabel("supervised", name, scale, options.command_line("vitutor"))
    record = train(config, Supervised.build, label=label, out=run)
    if work is not None:
        RunDir(run).publish(out)
        discard(run)
    return record.metrics["top1"]


def with_teachers(config: RunConfigT, scale: str, folder: Path, *, settings: tuple[str, ...] = ()) -> RunConfigT:
    """Train, unless they are there, the teachers that a config names by recipe, and fill in where they are.

    A teacher sees the same source as the student, whole but for what is held out; ``settings`` change its recipe
    further.
    """
    found = []
    same = {
        "data": ("source", "image_column", "label_column", "image_size", "eval_split", "holdout", "holdout_seed"),
        "runtime": ("device", "threads", "workers"),
    }
    inherited = tuple(
        setting(f"{section}.{name}", getattr(getattr(config, section), name))
        for section, names in same.items()
        for name in names
    )
    for path, teacher in teachers_of(config):
        if teacher.recipe is not None and teacher.weights is None:
            run = trained_teacher(scale, teacher.recipe, folder, settings=(*inherited, *settings))
            found.append(setting(f"{path}.weights", str(run)))
    return config.changed(found)


def trained_teacher(scale: str, name: str, folder: Path, *, settings: tuple[str, ...] = ()) -> Path:
    """Return the run of a teacher recipe below ``folder``, trained first unless it is there.

    A teacher of the same name that was trained by another config or on other images stays, and one of the right kind
    lies beside it, in a folder with a key in its name.
    """
    config = resolve(RunConfig, teacher_recipe(scale, name), row=name, settings=settings)
    run = RunDir((folder / name).absolute())
    before = _decided_by(run)
    if before is not None:
        now = identity_fields(config) | {"data": _images(config.data) or before["data"]}
        changed = differences(before, now)
        if changed:
            key = hashlib.sha256(json.dumps(now, sort_keys=True).encode()).hexdigest()[:12]
            click.echo(f"teacher {name}: {run.path} is another ({'; '.join(changed)}); taking {name}-{key}", err=True)
            run = RunDir(run.path.with_name(f"{name}-{key}"))
    if run.metrics.exists():
        RunRecord.read(run.path, "supervised")
    else:
        train_teacher(scale, name, run.path, settings=settings)
    return run.path


def _decided_by(run: RunDir) -> dict[str, Any] | None:
    """Return the fields of the config of a teacher, finished or begun, and the fingerprint of its images."""
    if run.metrics.exists():
        record = RunRecord.read(run.path)
        config = RunConfig.from_mapping(record.config, where=str(run.metrics))
        return identity_fields(config) | {"data": record.data_fingerprint}
    begun = run.path / "run.json"
    if not begun.exists():
        return None
    try:
        identity = json.loads(begun.read_text())["identity"]
        return {**identity["config"], "data": identity["data"]}
    except (OSError, ValueError, LookupError, TypeError):
        raise CheckpointError(f"{begun}: not readable; delete its folder, and it is trained again") from None


def _images(config: DataConfig) -> str:
    """Return the fingerprint of a teacher's images where a user can change them, or nothing."""
    if ":" not in config.source or config.source.startswith("hub:"):
        return ""
    from vitutor_core.data.sources import open_source
    from vitutor_core.data.subsets import fingerprint, subset_indices

    source = open_source(config)
    return fingerprint(source, subset_indices(source.train.labels, config))
