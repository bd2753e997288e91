from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from core.tests.report_samples import PAPER, write_row, write_run
from vitutor_core.errors import DataError
from vitutor_core.report.paper import load_paper_results
from vitutor_core.report.plots import draw_figures
from vitutor_core.report.publish import publish_results, replace_block, restore_results
from vitutor_core.report.results import load_results
from vitutor_core.report.table import build_table

ROOT = Path(__file__).parents[2]


def test_only_the_named_block_is_replaced():
    text = "a\n<!-- results:x -->\nold\n<!-- end -->\nb\n<!-- results:y -->\nkept\n<!-- end -->\n"
    expected = "a\n<!-- results:x -->\nnew\n<!-- end -->\nb\n<!-- results:y -->\nkept\n<!-- end -->\n"
    assert replace_block(text, "x", "new", where="f") == expected
    with pytest.raises(DataError, match="no block"):
        replace_block(text, "z", "new", where="f")


def test_what_is_published_can_be_read_in_the_repository(tmp_path):
    path = tmp_path / "paper_results.yaml"
    path.write_text(PAPER)
    results, target = tmp_path / "results", tmp_path / "repository" / "docs" / "results" / "digits"
    for row, value in (("plain", 90.0), ("part", 91.0), ("ours", 93.0)):
        write_row(results / "evaluation", row, [value, value + 1])
    write_run(
        results / "evaluation",
        "own_idea",
        0,
        90.0,
        {"config": {"teacher": {"weights": str(results / "teachers" / "cnn")}}},
    )
    paper, rows = load_paper_results(path), load_results(results / "evaluation", "demo")
    table = build_table(paper, rows)
    draw_figures(paper, table, rows, results / "reports" / "demo")
    readme = tmp_path / "repository" / "README.md"
    readme.parent.mkdir()
    readme.write_text("# x\n<!-- results:headlines -->\n<!-- end -->\n<!-- results:demo -->\n<!-- end -->\n")
    target.mkdir(parents=True)
    for name in ("demo-old.svg", "demo-old-dark.png", "demo_2-kept.svg"):
        (target / name).write_text("")
    with pytest.warns(UserWarning, match="was deleted") as told:
        written = publish_results(table, results, target, readme)
    assert [str(warning.message) for warning in told] == [
        f"{target / name} was deleted: it is not drawn from these results"
        for name in ("demo-old-dark.png", "demo-old.svg")
    ]
    assert {path.name for path in target.iterdir() if "old" in path.name or "kept" in path.name} == {"demo_2-kept.svg"}
    (target / "demo_2-kept.svg").unlink()
    assert all(path.exists() for path in written)
    runs = json.loads((target / "demo-runs.json").read_text())
    assert [run["config"]["teacher"]["weights"] for run in runs if run["row"] == "own_idea"] == ["results/teachers/cnn"]
    assert str(tmp_path) not in (target / "demo-runs.json").read_text()
    copied = (tmp_path / "elsewhere" / "results").resolve()
    shutil.copytree(results, copied)
    publish_results(table, copied, tmp_path / "again", None)
    assert (tmp_path / "again" / "demo-runs.json").read_text() == (target / "demo-runs.json").read_text()
    shown = re.findall(r"!?\[[^]]*\]\(([^)]*)\)", readme.read_text())
    folder = "docs/results/digits/"
    assert shown == [f"{folder}headlines.svg", f"{folder}demo-ablation-ablation.svg", f"{folder}demo.md"]
    found = "+3.0 ± 0.7 points, inconclusive ("
    assert f"- OURS minus plain model: {found}" in readme.read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (target / "demo.md").read_text())
    assert len(pictures) == len(list(target.glob("demo-*.svg"))) == 3
    assert all((target / name).exists() for name in pictures)
    for pair in (pair for part in table["tables"] for pair in part["comparisons"]):
        pair["verdict"] = None  # as after a table with one seed
    publish_results(table, results, target, readme)
    assert "<!-- results:headlines -->\nNo headline difference of a paper has a verdict yet.\n<!-- end -->" in (
        readme.read_text()
    )


def test_what_was_published_comes_back_beside_other_rows(tmp_path):
    path = tmp_path / "paper_results.yaml"
    path.write_text(PAPER)
    paper, first, later = load_paper_results(path), tmp_path / "first", tmp_path / "later"
    for row in ("plain", "ours"):
        write_row(first / "evaluation", row, [90.0, 91.0])
    rows = load_results(first / "evaluation", "demo")
    publish_results(build_table(paper, rows), first, tmp_path / "docs", None)
    write_row(later / "evaluation", "ours", [95.0])  # trained again since
    restored = restore_results("demo", tmp_path / "docs", later)
    assert [folder.relative_to(later).as_posix() for folder in restored] == [
        f"evaluation/demo/plain/seed-{seed}" for seed in (0, 1)
    ]
    found = load_results(later / "evaluation", "demo")
    assert [(run.result, run.curves) for run in found["plain"]] == [(run.result, run.curves) for run in rows["plain"]]
    assert [run.result.metrics["top1"] for run in found["ours"]] == [95.0]
    added = restore_results("demo", tmp_path / "docs", later, missing_seeds=True)
    assert added == [later / "evaluation" / "demo" / "ours" / "seed-1"]
    found = load_results(later / "evaluation", "demo")
    assert [run.result.metrics["top1"] for run in found["ours"]] == [95.0, 91.0]
    (tmp_path / "docs" / "demo-curves.json").unlink()  # as of an older version
    with pytest.warns(UserWarning, match="demo-curves.json is missing, so learning curves that are published next"):
        restore_results("demo", tmp_path / "docs", tmp_path / "last")
    (tmp_path / "docs" / "demo-runs.json").write_text("[")
    with pytest.raises(DataError, match="no readable runs; publish them first"):
        restore_results("demo", tmp_path / "docs", later)


def test_the_blocks_of_all_papers_are_where_make_writes_them():
    where = re.search(r"--readme (\S+?)\)", (ROOT / "Makefile").read_text())[1]
    page = ROOT / where
    papers = {path.parent.name for path in ROOT.glob("*/src/*/paper_results.yaml")}
    assert set(re.findall(r"<!-- results:(\w+) -->", page.read_text())) == {*papers, "headlines"}
    for link in re.findall(r"\]\(([^):]*)\)", page.read_text()):
        assert (page.parent / link).exists(), link
