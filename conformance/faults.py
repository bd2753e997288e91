"""`make faults`: count the faults that are injected and the bad input that is given, and what became of each.

The kinds are listed in faults.toml, with the tests that inject them; random kills of training come on top, as many as
asked for. Writes a table for people and a record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple, Self
from xml.etree import ElementTree

import click

from conformance.kills import kill_often
from vitutor_core.provenance import here

ROOT = Path(__file__).parent.parent


class Outcomes(NamedTuple):
    """Which cases of tests passed and which failed; one that was skipped is in neither set."""

    passed: set[str]
    failed: set[str]

    @classmethod
    def read(cls, junit: str) -> Self:
        """Read what pytest wrote with ``--junitxml``; cases are named ``FILE::TEST[PARAMETERS]``."""
        found = cls(set(), set())
        for case in ElementTree.fromstring(junit).iter("testcase"):  # noqa: S314  # pytest's own file
            kinds = {child.tag for child in case}
            name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            if kinds & {"failure", "error"}:
                found.failed.add(name)
            elif "skipped" not in kinds:
                found.passed.add(name)
        return found

    def of(self, name: str) -> set[str]:
        """Return the cases of a test, or of a file's tests."""
        return {
            case for case in self.passed | self.failed if case == name or case.startswith((f"{name}[", f"{name}::"))
        }


def count(kinds: list[dict[str, Any]], outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return each kind with its numbers of cases and of those that went as promised.

    A case belongs to the first kind that lists it. Raises `ValueError` for a test of which no case was run.
    """
    rows, counted = [], set[str]()
    for kind in kinds:
        found = {name: outcomes.of(name) for name in kind["tests"]}
        if missing := [name for name, cases in found.items() if not cases]:
            raise ValueError(f"{kind['name']}: no case of {', '.join(missing)} was run")
        cases = set().union(*found.values()) - counted
        counted |= cases
        rows.append({**kind, "cases": len(cases), "survived": len(cases - outcomes.failed)})
    return rows


def run_tests(tests: list[str], processes: str) -> Outcomes:
    """Run tests, ``processes`` at a time."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-n", processes, f"--junitxml={junit}", *dict.fromkeys(tests)]
        subprocess.run(command, cwd=ROOT, check=False)  # a failure is an outcome
        return Outcomes.read(junit.read_text(encoding="utf-8"))


def kill_training(kills: int) -> dict[str, Any]:
    """Kill runs of the tests' tiny student at random times."""
    from core.tests.train_samples import run

    settings = ("train.epochs=20", "runtime.checkpoint_every_epochs=1")
    with tempfile.TemporaryDirectory() as folder:
        found = kill_often(lambda out: run(out, *settings), Path(folder), kills=kills)
    return {
        "group": "injections",
        "name": "kills of training at random times",
        "how": "SIGKILL, SIGTERM or SIGINT to the process group, each run started again until it ends; weights "
        "compared bit by bit",
        "tests": ["conformance/kills.py"],
        "cases": found.injections,
        "survived": found.survived,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, a table for each group with its sum."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    lines = []
    for group, members in groups.items():
        cases, survived = (sum(row[name] for row in members) for name in ("cases", "survived"))
        lines += [f"## {group.capitalize()}: {survived} of {cases}", "", "| kind | how | as promised | tests |"]
        lines += ["|---|---|---|---|"]
        for row in members:
            links = ", ".join(f"[{Path(file).name}](../{file})" for file in _files(row["tests"]))
            lines.append(f"| {row['name']} | {row['how']} | {row['survived']} of {row['cases']} | {links} |")
        lines.append("")
    return "\n".join(lines)


def _files(tests: list[str]) -> list[str]:
    return list(dict.fromkeys(name.partition("::")[0] for name in tests))


INTRODUCTION = """# Reliability

What was done to ViTutor on purpose, and whether it did what it promises: a run loses no bit, a mistake is one line that
says what to do and leaves nothing behind, a hostile file runs nothing. Written by `make faults`, which anyone can run;
the record with machine and commit is [faults.json](results/faults.json).

"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="of training, at random times")
    parser.add_argument("--processes", default="2", help="tests side by side")
    arguments = parser.parse_args()
    kinds = tomllib.loads((Path(__file__).parent / "faults.toml").read_text())["kind"]
    killed = kill_training(arguments.kills)
    rows = [killed, *count(kinds, run_tests([name for kind in kinds for name in kind["tests"]], arguments.processes))]
    record = {"rows": rows, **here()}
    (ROOT / "docs" / "results" / "faults.json").write_text(json.dumps(record, indent=1) + "\n")
    (ROOT / "docs" / "reliability.md").write_text(INTRODUCTION + table(rows))
    click.echo(table(rows))
    raise SystemExit(any(row["survived"] < row["cases"] for row in rows))


if __name__ == "__main__":
    main()
