"""Train the seeds of one row side by side, and publish them together. Imports nothing heavy itself."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from vitutor_core.cli import options
from vitutor_core.cli.teacher import teacher_recipes, teachers_of, with_teachers
from vitutor_core.data.locate import locate
from vitutor_core.errors import ConfigError, InterruptedRun, VitutorError
from vitutor_core.schema import RunConfig
from vitutor_core.train.progress import QUIET, RunProgress
from vitutor_core.train.publish import WEIGHTS_NAME, publish

if TYPE_CHECKING:
    from vitutor_core.cli.paper import Paper


def reproduce_row(
    paper: Paper,
    row: str,
    scale: str,
    configs: list[RunConfig],
    *,
    preset: str | None,
    settings: tuple[str, ...],
    teachers: Path | None,
    work: Path,
    jobs: int | None,
    out: Path,
) -> None:
    """Train one run per config, ``jobs`` at a time, then put the results of all into ``out`` by one rename."""
    teachers = teachers or work / "teachers" / scale
    # First, because the name of a run says which teachers it had.
    with_teachers(configs[0], scale, teachers)
    runs, commands = [], []
    for own in configs:
        rows = _of_other_rows(own, out.parent)
        config = own.changed(rows)
        name = f"{row}-seed-{config.seed}-{_work_key(config, teachers)}"
        runs.append(work / paper.package / scale / name)
        arguments = ["train", "--scale", scale, "--row", row, "--seed", str(config.seed), "--out", str(runs[-1])]
        arguments += ["--teachers", str(teachers)]
        if preset is not None:
            arguments += ["--preset", preset]
        for setting in (*rows, *settings):
            arguments += ["--set", setting]
        commands.append(arguments)
    with RunProgress(row, sum(config.train.epochs for config in configs)) as progress:
        run_commands(paper, commands, jobs or default_jobs(), lambda: progress.update(_epochs_done(runs), "epochs"))
    partial = out.with_name(out.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    for config, run in zip(configs, runs, strict=True):
        publish(run, partial / f"seed-{config.seed}")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    for run in runs:
        shutil.rmtree(run)
    click.echo(f"{row}: {len(runs)} seeds in {out}")


def _of_other_rows(config: RunConfig, results: Path) -> list[str]:
    """Return settings that say where other rows were published: the student's start of the same seed, teachers.

    Raises `ConfigError` if one was not.
    """
    wanted = [("student", config.student.start_row, config.student.weights, config.seed)]
    wanted += [(path, teacher.row, teacher.weights, 0) for path, teacher in teachers_of(config)]
    settings = []
    for path, row, weights, seed in wanted:
        if row is not None and weights is None:
            folder = (results / row / f"seed-{seed}").absolute()
            if not (folder / WEIGHTS_NAME).exists():
                raise ConfigError(f"{path}: no {folder / WEIGHTS_NAME}; reproduce the row '{row}' first")
            settings.append(f"{path}.weights={json.dumps(str(folder))}")
    return settings


def _work_key(config: RunConfig, teachers: Path) -> str:
    """Name a run by everything that decides its result: config, teachers, starting weights, generated images."""
    digest = hashlib.sha256(config.fingerprint().encode())
    folders = [teachers / recipe for recipe in teacher_recipes(config)]
    folders += [Path(config.student.weights)] if config.student.weights is not None else []
    folders += [Path(teacher.weights) for _, teacher in teachers_of(config) if teacher.row and teacher.weights]
    for folder in folders:
        for weights in [folder] if folder.is_file() else sorted(folder.glob("*.safetensors")):
            digest.update(weights.read_bytes())
    if config.data.train_from is not None:
        manifest = locate(config.data.train_from) / "manifest.json"
        digest.update(manifest.read_bytes() if manifest.exists() else b"")
    return digest.hexdigest()[:12]


def default_jobs() -> int:
    """Return how many processes run side by side."""
    # A small model keeps one core busy, so a run per core and one to fill the gaps; a GPU takes one run.
    has_gpu = Path("/dev/nvidia0").exists()
    return 1 if has_gpu else (os.cpu_count() or 1) + 1


def _child(program: str, target: str, arguments: list[str], threads: int) -> None:
    import sys

    import torch

    os.environ[QUIET] = "1"
    os.setsid()  # signals reach a seed once, through its parent
    torch.set_num_threads(threads)
    sys.argv = [program, *arguments]
    options.load(target)()


def _epochs_done(runs: list[Path]) -> int:
    curves = [run / "curves.csv" for run in runs]
    return sum(len(path.read_text().splitlines()) - 1 for path in curves if path.exists())


def run_commands(paper: Paper, commands: list[list[str]], jobs: int, tick: Callable[[], None]) -> None:
    """Run commands of a paper in processes of their own, ``jobs`` at a time, and call ``tick`` while they run.

    Raises `InterruptedRun` when asked to stop, after the commands have, and `VitutorError` when one of them fails.
    """
    # The fork server imports the heavy packages once for all seeds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([paper.method.partition(":")[0], "vitutor_core.train.session", "sklearn.datasets"])
    threads = max(1, (os.cpu_count() or 1) // min(jobs, len(commands)))
    waiting = list(commands)
    running: list[BaseProcess] = []
    arrived: list[int] = []

    # Passed on by the loop below: while a process is being started, its handler could not reach it.
    def note_signal(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    before = {number: signal.signal(number, note_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    stopped_by = failed = 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                arguments = (paper.command, f"{paper.package}.cli:main", waiting.pop(0), threads)
                running.append(context.Process(target=_child, args=arguments))
                running[-1].start()
            time.sleep(0.05)
            tick()
            while arrived:
                stopped_by = arrived.pop()
                waiting.clear()
                _terminate(running)
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                if process.exitcode and not failed and not stopped_by:
                    failed = process.exitcode
                    waiting.clear()
                    _terminate(running)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped_by:
        raise InterruptedRun("stopped and saved; run it again to go on", stopped_by)
    if failed:
        if failed < 0:
            raise VitutorError(f"a seed was killed by {signal.Signals(-failed).name}; run it again to go on")
        error = VitutorError("a seed failed; its message is above")
        error.exit_code = failed
        raise error


def _terminate(running: list[BaseProcess]) -> None:
    for process in running:
        process.terminate()
