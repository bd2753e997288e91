"""What `make faults` counts, and that it can count a failure."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from conformance.faults import ROOT, Outcomes, count, table
from conformance.kills import kill_often

KINDS = tomllib.loads((ROOT / "conformance" / "faults.toml").read_text())["kind"]


@pytest.mark.parametrize("name", sorted({name for kind in KINDS for name in kind["tests"]}))
def test_the_tests_that_are_counted_exist(name: str) -> None:
    file, _, test = name.partition("::")
    assert re.search(rf"^def {test}\(" if test else "^def test_", (ROOT / file).read_text(), re.MULTILINE)


def test_each_case_is_counted_once_and_failures_are_seen() -> None:
    outcomes = Outcomes.read(
        """<testsuites><testsuite>
        <testcase classname="a" name="one[1]"/> <testcase classname="a" name="one[2]"><failure/></testcase>
        <testcase classname="a" name="two"/> <testcase classname="a" name="one_more"/>
        <testcase classname="a" name="three"><skipped/></testcase> <testcase classname="b" name="five"/>
        <testcase classname="c" name="four"><error/></testcase></testsuite></testsuites>"""
    )
    kinds = [
        {"group": "attacks", "name": "x", "how": "h", "tests": ["a.py::one"]},
        {"group": "attacks", "name": "y", "how": "h", "tests": ["a.py"]},
        {"group": "bad input", "name": "z", "how": "h", "tests": ["c.py::four"]},
    ]
    rows = count(kinds, outcomes)
    assert [(row["survived"], row["cases"]) for row in rows] == [(1, 2), (2, 2), (0, 1)]
    assert "## Attacks: 3 of 4" in table(rows)
    with pytest.raises(ValueError, match=r"x: no case of d\.py was run"):
        count([{**kinds[0], "tests": ["d.py"]}], outcomes)


def test_a_run_that_a_kill_changes_is_lost(tmp_path: Path) -> None:
    def train(out: Path) -> None:
        out.mkdir(exist_ok=True)
        if (out / "begun").exists():
            raise SystemExit(1)
        (out / "begun").touch()

    assert kill_often(train, tmp_path, kills=1).survived == 0
