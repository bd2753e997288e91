"""Train the seeds of a row side by side and publish each when it is done. Imports nothing heavy itself."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitutor_core.config import differences, fingerprinted_fields, setting
from vitutor_core.data.sources.locate import locate
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.files import discard, file_sha256, write_json
from vitutor_core.graph.needs import START, rows_of, source_name, teachers_of
from vitutor_core.graph.planned import PlannedRow, leave_out, place_in_plan, take_up
from vitutor_core.graph.stages import train_code
from vitutor_core.jobs.launch import Job, default_jobs, run_jobs
from vitutor_core.jobs.teacher import with_teachers
from vitutor_core.paper import Paper, load
from vitutor_core.progress import RunProgress
from vitutor_core.runs import RunDir, weights_file
from vitutor_core.schema import RunConfig
from vitutor_core.terminal import say


@dataclass(frozen=True)
class Row:
    """A row to be trained: what its runs are called, and the settings that a command would be given.

    ``of`` is the row of the recipe where the runs are called otherwise, ``recipe`` another file than the scale's, and
    ``said`` the command that is recorded where the paper has none for such a run.
    """

    paper: Paper
    name: str
    scale: str
    preset: str | None = None
    settings: tuple[str, ...] = ()
    of: str | None = None
    recipe: Path | None = None
    said: str | None = None

    def config(self, seed: int) -> RunConfig:
        """Resolve the row for one seed."""
        settings = (*self.settings, f"seed={seed}")
        return self.paper.resolve(self.scale, self.recipe, self.of or self.name, settings, preset=self.preset)

    def command(self, seed: int) -> str:
        """Return a command that trains the same run, by itself unless ``said``."""
        if self.said is not None:
            return self.said
        words = [self.paper.command, "train", "--scale", self.scale, "--row", self.name, "--seed", str(seed)]
        words += ["--preset", self.preset] if self.preset is not None else []
        words += [word for setting in self.settings for word in ("--set", setting)]
        return shlex.join([*words, "--out", f"runs/{self.name}-{seed}"])


@dataclass(frozen=True)
class Folders:
    """Where results are published and where unfinished runs lie."""

    results: Path
    work: Path

    def runs(self, paper: Paper, row: str) -> Path:
        """Return where the runs of a row are published."""
        return self.results / "runs" / paper.package / row


def reproduce_row(
    row: Row,
    seeds: tuple[int, ...],
    folders: Folders,
    *,
    jobs: int | None = None,
    processes: int = 1,
    title: str = "",
) -> None:
    """Train one run per seed, ``jobs`` at a time, and publish each as ``results/runs/PAPER/ROW/seed-N`` by a rename.

    ``title`` names the row where its progress is shown, instead of its name alone.
    A seed that is published with the same inputs (config, code, data, teachers, starting weights) is left alone.
    """
    paper, out = row.paper, folders.runs(row.paper, row.name)
    take_up(out)
    runs: dict[str, tuple[Path, Path, int]] = {}
    work: list[Job] = []
    device = "auto"
    code = train_code(paper)
    others = out.parent.with_name(paper.package.partition("+")[0])  # with another's term it has no rows of its own
    for seed in seeds:
        config = row.config(seed)
        config = config.changed(_of_other_rows(config, others))
        _require_data(config, folders.results)
        config = with_teachers(config, row.scale, folders.results / "teachers", method=paper.method)
        inputs = inputs_of(config, code, folders.results)
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
        run = folders.work / paper.package / row.scale / f"{row.name}-seed-{seed}-{key}"
        target = out / f"seed-{seed}"
        changed = _changed(target, inputs)
        if changed == []:
            discard(run)  # of a command that was killed after publishing
            say(f"{row.name}, seed {seed}: already in {target}")
            continue
        if changed:
            say(f"{row.name}, seed {seed}: trained again, since {'; '.join(changed)}")
        RunDir(target).check_target()
        run.parent.mkdir(parents=True, exist_ok=True)
        work.append(_job(row, config, code, inputs, run))
        runs[work[-1].name] = run, target, config.train.epochs
        device = config.runtime.device
    if work:
        side_by_side = min(jobs or default_jobs(device, processes), len(work))
        published = set[str]()

        def done(job: Job) -> None:
            run, target, _ = runs[job.name]
            RunDir(run).publish(target)
            discard(run)
            published.add(job.name)

        def epochs_left() -> list[int]:
            return [
                max(epochs - _epochs_done(target if name in published else run), 0)
                for name, (run, target, epochs) in runs.items()
            ]

        def tick() -> None:
            left = epochs_left()
            progress.update(total - sum(left), "", in_turn=in_turn(left, side_by_side))

        preload = [paper.method.partition(":")[0], "vitutor_core.train.session"]
        total, left = sum(epochs for _, _, epochs in runs.values()), epochs_left()
        with RunProgress(
            f"{title or row.name}, epochs", total, done=total - sum(left), in_turn=in_turn(left, side_by_side)
        ) as progress:
            run_jobs(
                work,
                side_by_side,
                preload=preload,
                tick=tick,
                done=done,
                processes=processes,
                device=device,
            )
    say(f"{row.name}: {len(seeds)} seeds in {out}")


def reproduce_planned(
    paper: Paper, name: str, plan: Path, folders: Folders, *, jobs: int | None, processes: int | None
) -> None:
    """Train a row as a ``plan`` says, or leave it out and say why; ``processes`` instead of the plan's."""
    planned = PlannedRow.read(plan, paper.package, name)
    if not planned.run:
        leave_out(folders.runs(paper, name), planned.why)
        say(f"{name}: not run, {planned.why}")
        return
    row = Row(paper, name, planned.scale, planned.preset, planned.settings)
    title = place_in_plan(plan, paper.package, name, folders.runs(paper, name).parent)
    workers = processes or planned.processes
    reproduce_row(row, planned.seeds, folders, jobs=jobs, processes=workers, title=title)


def _require_data(config: RunConfig, results: Path) -> None:
    """Raise `DataError` if the stage that checks the data of a row has found them missing."""
    path = results / "data" / source_name(config.data.source)
    checked = json.loads(path.read_text()) if path.exists() else {}
    if "skipped" in checked:
        raise DataError(f"{config.data.source}: {checked['skipped']}; provide it, then plan again")


def train_job(
    schema: str, method: str, config: dict[str, Any], label: dict[str, Any], inputs: dict[str, Any], out: str
) -> None:
    """Train one run from its config as JSON; this is what a job's process does."""
    from vitutor_core.train.session import RunLabel, train

    parsed: RunConfig = load(schema).from_mapping(config, where=label["row"])
    train(parsed, load(method).build, label=RunLabel(**label), out=Path(out), measure=False)
    if os.environ.get("RANK", "0") == "0":
        write_json(RunDir(Path(out)).inputs, inputs)


def _job(row: Row, config: RunConfig, code: str, inputs: dict[str, Any], run: Path) -> Job:
    label = {"paper": row.paper.package, "row": row.name, "scale": row.scale, "command": row.command(config.seed)}
    arguments = {
        "schema": row.paper.config,
        "method": row.paper.method,
        "config": config.model_dump(mode="json"),
        "label": label | {"code": code},
        "inputs": inputs,
        "out": str(run.absolute()),
    }
    return Job(f"{row.name}, seed {config.seed}", f"{__name__}:train_job", arguments)


def _of_other_rows(config: RunConfig, published: Path) -> list[str]:
    """Return settings that say where other rows were published: the student's start of the same seed, teachers.

    A row of another paper is ``PAPER/ROW``. Raises `ConfigError` if one was not published.
    """
    settings = []
    for path, row in rows_of(config):
        seed = config.seed if path == START else 0
        folder = ((published.parent if "/" in row else published) / row / f"seed-{seed}").absolute()
        if not weights_file(folder).is_file():
            raise ConfigError(f"{path}: no {RunDir(folder).weights}; reproduce the row '{row}' first")
        settings.append(setting(f"{path}.weights", str(folder)))
    return settings


def inputs_of(config: RunConfig, code: str, results: Path) -> dict[str, Any]:
    """Return everything that decides a run's result: config, code, data, teachers, starting weights, images."""
    weights = {path: teacher.weights for path, teacher in teachers_of(config) if teacher.weights is not None}
    weights |= {"student": config.student.weights} if config.student.weights is not None else {}
    data = results / "data" / source_name(config.data.source)
    inputs: dict[str, Any] = {
        "code": code,
        "config": fingerprinted_fields(config),
        "weights": {path: file_sha256(weights_file(Path(where))) for path, where in weights.items()},
        "data": file_sha256(data) if data.exists() else None,
    }
    if config.data.train_from is not None:
        manifest = locate(config.data.train_from) / "manifest.json"
        inputs["images"] = file_sha256(manifest) if manifest.exists() else None
    return inputs


def _changed(published: Path, inputs: dict[str, Any]) -> list[str] | None:
    """Return what differs from the inputs of a published run: nothing if it is up to date, None if there is none."""
    try:
        before = json.loads(RunDir(published).inputs.read_text())
        old, new = ({**values, **values["config"], "config": None} for values in (before, inputs))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return differences(old, new)


def share_left(row: Row, seed: int, folders: Folders) -> float:
    """Return the share of a run that is still to be trained: none if it is published, less than all if it was begun.

    A run is known by its code and config; whether its teachers are still the same shows only when it is trained.
    """
    config = row.config(seed)
    published = RunDir(folders.runs(row.paper, row.name) / f"seed-{seed}").inputs
    try:
        before = json.loads(published.read_text())
        old, new = (_without_places(fields) for fields in (before["config"], fingerprinted_fields(config)))
        if old == new and before["code"] == train_code(row.paper):
            return 0.0
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none
    begun = (folders.work / row.paper.package / row.scale).glob(f"{row.name}-seed-{seed}-*")
    return max(1 - max(map(_epochs_done, begun), default=0) / config.train.epochs, 0.01)


def _without_places(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where weights are, which is known when what comes before is trained; values as JSON has them."""
    return {path: value for path, value in fields.items() if not path.endswith(".weights")}


def in_turn(left: Sequence[int], side_by_side: int) -> int:
    """Return how many epochs come one after another until all jobs are done, of which each has so many ``left``.

    Jobs are begun in their order, ``side_by_side`` at a time.
    """
    ends = [0] * side_by_side
    for epochs in left:
        heapq.heapreplace(ends, ends[0] + epochs)
    return max(ends)


def _epochs_done(run: Path) -> int:
    path = RunDir(run).curves
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0
