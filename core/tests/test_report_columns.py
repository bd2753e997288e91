"""Tables of several measured columns: what a star stands for, and how their differences are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.tests.report_samples import PAPER, build, write_run
from vitutor_core.errors import DataError
from vitutor_core.report.paper import PaperResults, load_paper_results


def paper_of(tables: str, folder: Path) -> PaperResults:
    """Return the synthetic paper with other tables."""
    path = folder / "paper_results.yaml"
    path.write_text(f"{PAPER[: PAPER.index('tables:')]}tables:{tables}")
    return load_paper_results(path)


def test_differences_between_the_same_rows_say_of_which_number_they_are(tmp_path: Path) -> None:
    text = """
  - id: tokens
    title: Table D
    caption: tokens
    columns: {token: Token, top1: Top-1, blurred: Blurred}
    measured: [top1, blurred]
    rows:
      - {label: plain, cells: {token: second, top1: 50.0, blurred: 20.0}, row: "plain:second_*"}
      - {label: OURS, cells: {token: second, top1: 51.0, blurred: 23.0}, row: "ours:second_*"}
      - {label: part, cells: {token: first, top1: 49.0}, row: "part:first_*"}
    comparisons: [{row: "ours:second_*", to: "plain:second_*"}, {row: "part:first_top1", to: "plain:second_top1"}]
"""
    metrics = {"top1": 90.0, "images": 900.0, "second_top1": 88.0, "second_blurred": 40.0}
    write_run(tmp_path, "ours", 0, 0.0, {"metrics": metrics})
    pairs = build(paper_of(text, tmp_path), tmp_path)["tables"][0]["comparisons"]
    assert [(pair["where"], pair["paper"]) for pair in pairs] == [
        (" (second, Top-1)", 1.0),
        (" (second, Blurred)", 3.0),
        ("", -1.0),
    ]


def test_a_star_stands_for_each_measured_column(tmp_path: Path) -> None:
    text = """
  - id: sets
    title: Table D
    caption: sets
    columns: {flowers: Flowers, pets: Pets}
    rows:
      - {label: plain, cells: {flowers: 50.0, pets: 60.0}, row: plain_*}
      - {label: OURS, cells: {flowers: 51.0, pets: null}, row: ours_*}
      - {label: part, cells: {pets: 61.0}, row: "part_*:agent"}
    comparisons: [{row: ours_*, to: plain_*, headline: true}]
  - {id: one, title: Table E, caption: one, columns: {a: A, top1: Top-1}, rows: []}
"""
    several, one = paper_of(text, tmp_path).tables
    found = [(cell.row, cell.value) for cell in several.cells()]
    assert found[:4] == [("plain_flowers", 50.0), ("plain_pets", 60.0), ("ours_flowers", 51.0), ("ours_pets", None)]
    assert found[4:] == [(None, None), ("part_pets:agent", 61.0)]
    pairs = [(pair.row, pair.to, pair.headline) for pair in several.comparisons]
    assert pairs == [("ours_flowers", "plain_flowers", True), ("ours_pets", "plain_pets", True)]
    # What a table does not say: it is of top-1, in the column of that name, else in all columns.
    assert (several.metric, several.measured, one.measured) == ("top1", ("flowers", "pets"), ("top1",))
    with pytest.raises(DataError, match=r"'ours_\*' with 'plain_pets': put the \* into both"):
        paper_of(text.replace("to: plain_*", "to: plain_pets"), tmp_path)
    with pytest.raises(DataError, match="measured columns are not in columns"):
        paper_of(text.replace("columns: {a: A, top1: Top-1}", "columns: {a: A}, measured: [top1]"), tmp_path)
