"""Train the lines of `vitutor compare`, one after the other, and put the table together after each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vitutor_core.cli.compared import LONG, PLAIN, Contest, Entry
from vitutor_core.cli.evaluate import evaluate_row
from vitutor_core.cli.launch import default_jobs
from vitutor_core.cli.price import Prices
from vitutor_core.cli.reproduce import Folders, Row, reproduce_row
from vitutor_core.errors import named
from vitutor_core.graph.needs import teachers_of
from vitutor_core.paper import load
from vitutor_core.provenance import usable_cores
from vitutor_core.report.leaderboard import Entrant, Kind, Spent, build_leaderboard, spent_by
from vitutor_core.report.results import Run, load_results
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.train.progress import is_silent

Seeds = tuple[int, ...]


def say_prices(contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds) -> None:
    """Print each line with its total compute, and the time that all of them take."""
    if is_silent():
        return
    alone = prices.total(entries[0])
    for entry in entries:
        student = "common student" if entry.is_common else f"student of its own: {entry.line.own}"
        compute = f"{prices.total(entry) / alone:5.1f}x compute"
        click.echo(f"{entry.name:28}{entry.line.title:34}{compute}  {student}", err=True)
    rows = _rows(contest, entries, seeds)
    runs = sum(len(numbers) for numbers in rows.values())
    click.echo(
        f"{len(entries)} lines, {runs} runs; {_left(contest, prices, entries, rows)} by one step of each", err=True
    )


def run_contest(
    contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds, out: Path, publish: Path | None
) -> dict[str, Any]:
    """Train, evaluate and compare; what is done already stays. Returns the table, which is in ``out``, too."""
    from vitutor_core.report.leaderboard_page import publish_board, write_board

    folders, rows = Folders(out, out / "work"), _rows(contest, entries, seeds)
    board: dict[str, Any] = {}
    for number, (row, numbers) in enumerate(rows.items(), start=1):
        left = _left(contest, prices, entries, dict(list(rows.items())[number - 1 :]), out)
        with named(f"{row.paper.command}, row {row.name}"):
            if not is_silent():
                click.echo(f"[{number}/{len(rows)}] {row.name}: {left}", err=True)
            reproduce_row(row, numbers, folders, title=f"{number}/{len(rows)} {row.name}")
            _evaluate(row, folders.runs(row.paper, row.name), _evaluation(out, row), numbers)
        if any(entry.row == row for entry in entries):
            board, runs = _board(contest, prices, entries, seeds, out)
            write_board(board, runs, out)
            if publish is not None:
                publish_board(board, runs, out, publish)
    return board


def _rows(contest: Contest, entries: Sequence[Entry], seeds: Seeds) -> dict[Row, Seeds]:
    """Return the rows in the order of training, each with its seeds; one that only teaches has seed 0 alone."""
    found: dict[Row, Seeds] = {}
    for entry in entries:
        for row, every in [*contest.before(entry.row), (entry.row, True)]:
            found[row] = tuple(sorted({*found.get(row, ()), *(seeds if every else (0,))}))
    return found


def _left(
    contest: Contest, prices: Prices, entries: Sequence[Entry], rows: dict[Row, Seeds], out: Path | None = None
) -> str:
    """Say how long the runs that are not done yet take: by steps that were timed, or by the runs that are done."""
    planned, done, measured = 0.0, 0.0, 0.0
    side_by_side = min(default_jobs(), usable_cores())
    for row, seeds in rows.items():
        price = prices.of(row)
        waiting = [seed for seed in seeds if out is None or not _run(out, row, seed).metrics.exists()]
        planned += price.seconds * len(waiting) / min(side_by_side, max(len(waiting), 1))
    everything = _rows(contest, entries, ()) if out is not None else {}
    for row in everything:
        for folder in sorted(Folders(out or Path(), Path()).runs(row.paper, row.name).glob("seed-*")):
            done += prices.of(row).seconds
            measured += RunRecord.read(folder).seconds
    taught = {name: config for entry in entries for name, config in prices.teachers(entry).items()}
    for name, config in taught.items():
        if out is None or not RunDir(out / "teachers" / name).metrics.exists():
            planned += prices.teacher(name, config).seconds
    return f"about {_time(planned * (measured / done if done else 1))} left"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 120 else f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"


def _run(out: Path, row: Row, seed: int) -> RunDir:
    return RunDir(Folders(out, out).runs(row.paper, row.name) / f"seed-{seed}")


def _evaluation(out: Path, row: Row) -> Path:
    return out / "evaluation" / row.paper.package / row.name


def _evaluate(row: Row, runs: Path, target: Path, seeds: Seeds) -> None:
    """Evaluate the runs of a row, unless these very runs were."""
    pairs = [(runs / f"seed-{seed}", target / f"seed-{seed}") for seed in seeds]
    if all(RunDir(measured).metrics.exists() for _, measured in pairs) and all(
        RunRecord.read(run).fingerprint == RunRecord.read(measured).fingerprint for run, measured in pairs
    ):
        return
    evaluate_row(row.paper, runs, target, None, speed=False)


def _board(
    contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds, out: Path
) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """Put together the table of the lines that are done, and their runs by name."""
    runs = {entry.name: _evaluated(out, entry.row, seeds) for entry in entries}
    done = [entry for entry in entries if runs[entry.name]]
    entrants = [_entrant(contest, prices, entry, runs[entry.name], out) for entry in done]
    alone = prices.total(done[0])
    teachers: dict[str, dict[str, Any]] = {}
    for entry in done:
        for name, (path, config) in _teachers(runs[entry.name][0].result, entry.row).items():
            price = prices.teacher(name, prices.teachers(entry).get(name, config))
            record = RunRecord.read(path)
            spent = spent_by([Run(path, record, {})], price.flops)
            facts = {"name": name, "model": record.config["student"]["name"], "top1": record.metrics["top1"]}
            teachers[name] = {
                **facts,
                **spent._asdict(),
                "train_images": record.train_images,
                "compute": price.flops / alone,
            }
    board = build_leaderboard(entrants, list(teachers.values()), _facts(contest, runs[PLAIN], seeds))
    return board, {entry.name: runs[entry.name] for entry in done}


def _evaluated(out: Path, row: Row, seeds: Seeds) -> list[Run]:
    """Return the evaluated runs of a row, if all of them are there."""
    folder = _evaluation(out, row)
    if not all(RunDir(folder / f"seed-{seed}").metrics.exists() for seed in seeds):
        return []
    found = load_results(folder.parent.parent, row.paper.package)[row.name]
    return [run for run in found if run.result.seed in seeds]


def _entrant(contest: Contest, prices: Prices, entry: Entry, runs: Sequence[Run], out: Path) -> Entrant:
    before = Spent()
    for row, _ in contest.before(entry.row):
        folders = sorted(_evaluation(out, row).glob("seed-*"))
        records = [Run(folder, RunRecord.read(folder), {}) for folder in folders]
        before = before.plus(spent_by(records, prices.of(row).flops))
    uncounted = []
    for row in [*(row for row, _ in contest.before(entry.row)), entry.row]:
        record = RunRecord.read(sorted(_evaluation(out, row).glob("seed-*"))[0])
        trained = _teachers(record, row)
        for name, (path, _) in trained.items():
            price = prices.teacher(name, prices.teachers(entry)[name])
            before = before.plus(spent_by([Run(path, RunRecord.read(path), {})], price.flops))
        known = len(trained) + len(contest.teacher_rows(row))
        uncounted += [teacher.name for teacher in list(record.teachers.values())[known:]]
    kinds: dict[str, Kind] = {PLAIN: "plain", LONG: "long"}
    kind: Kind = "composition" if entry.parts else "model" if entry.line.teacher is not None else "method"
    return Entrant(
        entry.name,
        entry.line.title,
        kinds.get(entry.name, kind),
        runs,
        spent_by(runs, prices.of(entry.row).flops),
        before,
        own=entry.line.own,
        parts=entry.parts,
        uncounted=tuple(uncounted),
    )


def _teachers(record: RunRecord, row: Row) -> dict[str, tuple[Path, RunConfig]]:
    """Return the teachers that a run had trained by a recipe: their folder, and the run's config."""
    config: RunConfig = load(row.paper.config).from_mapping(record.config, where=record.row)
    return {
        teacher.recipe: (Path(teacher.weights), config)
        for _, teacher in teachers_of(config)
        if teacher.recipe is not None and teacher.weights is not None
    }


def _facts(contest: Contest, alone: Sequence[Run], seeds: Seeds) -> dict[str, Any]:
    """Return what all lines share, of the runs of the student alone."""
    first, student = alone[0].result, contest.budget.student
    return {
        "scale": contest.scale,
        "source": contest.budget.data.source,
        "student": {
            "name": student.name,
            "kwargs": student.model_dump(mode="json")["kwargs"],
            "parameters": first.metrics["parameters"],
        },
        "image_size": contest.budget.data.image_size,
        "train_images": first.train_images,
        "evaluation_images": int(first.metrics["images"]),
        "seeds": list(seeds),
        "updates": first.updates,
        "batch_size": contest.budget.train.batch_size,
    }
