"""Train the lines of `vitutor compare`, one after the other, and put the table together after each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitutor_core.compare.contest import LONG, PLAIN, Contest, Entry
from vitutor_core.compare.price import Prices
from vitutor_core.errors import named
from vitutor_core.graph.needs import teachers_of
from vitutor_core.jobs.evaluate import evaluate_row
from vitutor_core.jobs.launch import default_jobs
from vitutor_core.jobs.reproduce import Folders, Row, reproduce_row, share_left
from vitutor_core.paper import load
from vitutor_core.progress import duration, is_silent
from vitutor_core.provenance import usable_cores
from vitutor_core.report.leaderboard import Entrant, Kind, Spent, build_leaderboard, spent_by
from vitutor_core.report.results import Run, load_results
from vitutor_core.runs import RunDir, RunRecord
from vitutor_core.schema import RunConfig
from vitutor_core.terminal import say

Seeds = tuple[int, ...]
_START_S = 8.0
"""Seconds until the first process of a row runs, which imports torch: 5 to 10 on two cores."""
_RUN_S = 4.0
"""Seconds of a run besides its updates (data, checks, evaluations): 2 to 5 with ten digits per class on two cores."""


def say_prices(contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds, out: Path) -> None:
    """Print each line with its total compute, and the time that what ``out`` has not of them takes."""
    if is_silent():
        return
    alone = prices.total(entries[0])
    for entry in entries:
        student = "common student" if entry.is_common else f"student of its own: {entry.line.own}"
        compute = f"{prices.total(entry) / alone:5.1f}x compute"
        say(f"{entry.name:28}{entry.line.title:34}{compute}  {student}", err=True)
    rows = _rows(contest, entries, seeds)
    runs = sum(len(numbers) for numbers in rows.values())
    left = _left(prices, entries, rows, Folders(out, out / "work"))
    time = f"{_about(left + _START_S)}, estimated from a timed step of each" if left else _about(left)
    say(f"{len(entries)} lines, {runs} runs; {time}", err=True)


def run_contest(
    contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds, out: Path, publish: Path | None
) -> dict[str, Any]:
    """Train, evaluate and compare; what is done already stays. Returns the table, which is in ``out``, too."""
    from vitutor_core.report.leaderboard_page import publish_board, write_board

    folders, rows = Folders(out, out / "work"), _rows(contest, entries, seeds)
    board: dict[str, Any] = {}
    passed: set[Row] = set()
    for number, (row, numbers) in enumerate(rows.items(), start=1):
        with named(f"{row.paper.command}, row {row.name}"):
            if not is_silent():
                # Before the first row the time was said with the prices.
                left = "" if number == 1 else f": {_about(_left(prices, entries, rows, folders))}"
                say(f"[{number}/{len(rows)}] {row.name}{left}", err=True)
            reproduce_row(row, numbers, folders, title=f"{number}/{len(rows)} {row.name}")
            is_new = _evaluate(row, folders.runs(row.paper, row.name), _evaluation(out, row), numbers)
        passed.add(row)  # results of rows that this call has not come to may be those of other settings
        if number == len(rows) or (is_new and any(entry.row == row for entry in entries)):
            board, runs = _board(contest, prices, [entry for entry in entries if entry.row in passed], seeds, out)
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


def _left(prices: Prices, entries: Sequence[Entry], rows: Mapping[Row, Seeds], folders: Folders) -> float:
    """Return the seconds that the runs and teachers take which are not there: as timed, and as long as others took."""
    left, expected, took = 0.0, 0.0, 0.0
    side_by_side = min(default_jobs(), usable_cores())
    for row, seeds in rows.items():
        shares = {seed: share_left(row, seed, folders) for seed in seeds}
        waiting = [share for share in shares.values() if share]
        whole = prices.of(row).seconds * sum(waiting) + _RUN_S * len(waiting)
        left += whole / min(side_by_side, max(len(waiting), 1))
        for seed in (seed for seed, share in shares.items() if not share):
            expected += prices.of(row).seconds + _RUN_S
            took += RunRecord.read(folders.runs(row.paper, row.name) / f"seed-{seed}").seconds
    for name, config in {name: of for entry in entries for name, of in prices.teachers(entry).items()}.items():
        if not RunDir(folders.results / "teachers" / name).metrics.exists():
            left += prices.teacher(name, config).seconds + _RUN_S
    return left * (took / expected if expected else 1)


def _about(left: float) -> str:
    return f"about {duration(left)} left" if left else "all trained"


def _evaluation(out: Path, row: Row) -> Path:
    return out / "evaluation" / row.paper.package / row.name


def _evaluate(row: Row, runs: Path, target: Path, seeds: Seeds) -> bool:
    """Evaluate the runs of a row, unless these very runs were; return whether that was needed."""
    pairs = [(runs / f"seed-{seed}", target / f"seed-{seed}") for seed in seeds]
    if all(RunDir(measured).metrics.exists() and _trained_as(run) == _trained_as(measured) for run, measured in pairs):
        return False
    evaluate_row(row.paper, runs, target, None, speed=False, seeds=seeds)
    return True


def _trained_as(run: Path) -> RunRecord:
    """Return the record without what an evaluation measures anew."""
    return RunRecord.read(run).model_copy(update={"metrics": {}, "correct": {}})


def _board(
    contest: Contest, prices: Prices, entries: Sequence[Entry], seeds: Seeds, out: Path
) -> tuple[dict[str, Any], dict[str, list[Run]]]:
    """Put together the table of lines that are done, and their runs by name."""
    runs = {entry.name: _evaluated(out, entry.row, seeds) for entry in entries}
    entrants = [_entrant(contest, prices, entry, runs[entry.name], seeds, out) for entry in entries]
    alone = prices.total(entries[0])
    teachers: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for name, path in _trained(runs[entry.name][0].result, entry.row).items():
            flops, record = prices.teacher(name, prices.teachers(entry)[name]).flops, RunRecord.read(path)
            facts = {"name": name, "model": record.config["student"]["name"], "top1": record.metrics["top1"]}
            spent = spent_by([Run(path, record, {})], flops)._asdict()
            teachers[name] = {**facts, **spent, "train_images": record.train_images, "compute": flops / alone}
    board = build_leaderboard(entrants, list(teachers.values()), _facts(contest, runs[PLAIN], seeds))
    return board, runs


def _evaluated(out: Path, row: Row, seeds: Seeds) -> list[Run]:
    found = load_results(out / "evaluation", row.paper.package)[row.name]
    return [run for run in found if run.result.seed in seeds]


def _entrant(contest: Contest, prices: Prices, entry: Entry, runs: Sequence[Run], seeds: Seeds, out: Path) -> Entrant:
    rows = [(entry.row, runs[0].result)]
    before = Spent()
    for row, every in contest.before(entry.row):
        folders = [_evaluation(out, row) / f"seed-{seed}" for seed in (seeds if every else (0,))]
        records = [Run(folder, RunRecord.read(folder), {}) for folder in folders]
        before = before.plus(spent_by(records, prices.of(row).flops))
        rows.insert(-1, (row, records[0].result))
    uncounted: list[str] = []
    trained: dict[str, Path] = {}
    for row, record in rows:
        trained |= _trained(record, row)
        uncounted += _published(record, row)
    for name, path in trained.items():
        price = prices.teacher(name, prices.teachers(entry)[name])
        before = before.plus(spent_by([Run(path, RunRecord.read(path), {})], price.flops))
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


def _trained(record: RunRecord, row: Row) -> dict[str, Path]:
    """Return the folders of the teachers that a run had trained by a recipe."""
    taught = [teacher for _, teacher in teachers_of(_config(record, row))]
    return {of.recipe: Path(of.weights) for of in taught if of.recipe is not None and of.weights is not None}


def _published(record: RunRecord, row: Row) -> list[str]:
    """Return the teachers of a run that came with their weights, whose training nobody has counted."""
    taught = [of for _, of in teachers_of(_config(record, row)) if of.recipe is None and of.row is None]
    return [of.model.name if of.model is not None else Path(str(of.weights)).name for of in taught]


def _config(record: RunRecord, row: Row) -> RunConfig:
    config: RunConfig = load(row.paper.config).from_mapping(record.config, where=record.row)
    return config


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
