"""Reading results and the papers' own numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from core.tests.report_samples import PAPER, write_row, write_run
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.report.drawing import style_of
from vitutor_core.report.paper import load_paper_results
from vitutor_core.report.results import load_results, read_curves

ROOT = Path(__file__).parents[2]


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        load_results(tmp_path, "demo")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row": "ours"}, "row is 'ours', its folder says 'plain'"),
        ({"seed": 3}, "seed is 'seed-3', its folder says 'seed-1'"),
        ({"paper": "else"}, "paper is 'else'"),
        ({"extra": 1}, "extra: Extra inputs"),
        ({"metrics": {"top1": math.nan}}, "metrics.top1: Input should be a finite number"),
        ({"epochs": "4"}, "epochs: Input should be a valid integer"),
        ({"scale": "cifar100"}, "several scales"),
        ({"config": {"seed": 1, "train": {"epochs": 5}, "method": {"stage1_epochs": 3}}}, "train.epochs: 4 -> 5"),
    ],
)
def test_results_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_run(tmp_path, "plain", 0, 90.0)
    folder = write_run(tmp_path, "plain", 1, 91.0, changes)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_results(tmp_path, "demo")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds_of_a_row_may_differ_in_what_may_change_when_a_run_resumes(tmp_path: Path) -> None:
    later = {"data": {"decoded_gb": 5.0}, "runtime": {"workers": 7}, "student": {"weights": "of-seed-1"}}
    write_run(tmp_path, "plain", 0, 90.0)
    write_run(tmp_path, "plain", 1, 91.0, {"config": {"seed": 1, "train": {"epochs": 4}, **later}})
    assert len(load_results(tmp_path, "demo")["plain"]) == 2


def test_images_that_lie_elsewhere_are_others(tmp_path: Path) -> None:
    for seed, folder in enumerate(("generated", "elsewhere")):
        config = {"seed": seed, "data": {"train_from": folder}}
        write_run(tmp_path, "plain", seed, 90.0, {"config": config})
    with pytest.raises(DataError, match=r"data\.train_from: 'generated' -> 'elsewhere'"):
        load_results(tmp_path, "demo")


def test_a_teacher_is_the_same_by_its_weights_and_not_by_where_they_lie(tmp_path: Path) -> None:
    """As those of published seeds do, whose paths begin at the name of the results' folder."""

    def write(seed: int, folder: str, sha256: str) -> None:
        section = {"recipe": "cnn", "weights": f"{folder}/teachers/cnn"}
        config = {"seed": seed, "teacher": section, "teachers": {"cnn": section}, "method": {"weights": [0.5]}}
        teachers = {"cnn": {"name": "resnet8", "sha256": sha256, "top1": 99.0}}
        write_run(tmp_path, "ours", seed, 90.0, {"config": config, "teachers": teachers})

    write(0, "results", "3f" * 32)
    write(1, "/elsewhere/results", "3f" * 32)
    assert len(load_results(tmp_path, "demo")["ours"]) == 2
    write(2, "results", "4f" * 32)
    with pytest.raises(DataError, match=r"\(weights of the teacher cnn: '3f3f3f3f3f3f' -> '4f4f4f4f4f4f'\)"):
        load_results(tmp_path, "demo")


@pytest.mark.parametrize("name", ["metrics.json", "curves.csv"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path, "plain", 0, 90.0)
    (folder / name).unlink()
    with pytest.raises(DataError, match=re.escape(str(folder / name))):
        load_results(tmp_path, "demo")


def test_unfinished_folders_are_ignored(tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 0, 90.0)
    (tmp_path / "demo" / "plain" / "seed-1.tmp").mkdir()
    (tmp_path / "demo" / "table.json").write_text("{}")
    assert [run.result.seed for run in load_results(tmp_path, "demo")["plain"]] == [0]


def test_what_was_measured_of_other_images_is_read_beside_the_evaluation(tmp_path: Path) -> None:
    write_row(tmp_path / "evaluation", "plain", [90.0, 91.0])
    folder = tmp_path / "robustness" / "demo" / "plain"
    folder.mkdir(parents=True)
    (folder / "seed-1.json").write_text('{"metrics": {"v2": 61.0}}')
    runs = load_results(tmp_path / "evaluation", "demo")["plain"]
    assert [run.result.metrics.get("v2") for run in runs] == [None, 61.0]
    (folder / "seed-1.json").write_text('{"v2": 61.0}')
    with pytest.raises(DataError, match="robustness"):
        load_results(tmp_path / "evaluation", "demo")


@pytest.mark.parametrize("text", ["", "step,top1\n1,2\n", "epoch,epoch\n1,2\n", "epoch,top1\n0\n", "epoch,top1\n0,x\n"])
def test_broken_curves(tmp_path: Path, text: str) -> None:
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        read_curves(path)


def test_curves(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("epoch,top1\r\n0,\r\n1,55.5\r\n")
    assert read_curves(tmp_path / "curves.csv") == {"epoch": [0.0, 1.0], "top1": [None, 55.5]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("baseline: plain", "baseline: nobody", "unknown rows"),
        ("row: part}", "row: ours}", "a package row reproduces two cells"),
        ("Training: [plain, ours]", "Training: [plain, stranger]", "rows of no method"),
        ("cells: {top1: 60.0}", "cells: {top2: 60.0}", "cells outside the columns"),
        ("cells: {top1: 60.0}", "cells: {top1: high}", "not a number"),
        ("row: {plain: plain_10, ours: ours_10}", "row: ours_10", "per measured column"),
        ("caption: parts", "captoin: parts", "captoin"),
    ],
)
def test_paper_data_with_mistakes(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "paper_results.yaml"
    assert old in PAPER
    path.write_text(PAPER.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_paper_results(path)


def test_paper_data_that_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "paper_results.yaml"
    with pytest.raises(DataError, match="reinstall"):
        load_paper_results(path)
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_paper_results(path)


@pytest.mark.parametrize("path", sorted(ROOT.glob("*/src/*/paper_results.yaml")), ids=lambda path: path.parent.name)
def test_every_paper_in_the_workspace(path: Path) -> None:
    results = load_paper_results(path)
    assert results.paper == path.parent.name
    assert any(table.reproduced() for table in results.tables)
    for title, drawn in results.curves.items():
        looks = {(style["color"], style["marker"]) for style in (style_of(results, row) for row in drawn)}
        assert len(looks) == len(drawn), title


def test_printed_gaps_of_dearkd() -> None:
    """The differences that the paper prints in Table 2 must follow from the accuracies that were transcribed."""
    results = load_paper_results(ROOT / "dearkd" / "src" / "dearkd" / "paper_results.yaml")
    cells = next(table for table in results.tables if table.id == "table2").reproduced()
    gaps = {
        "dearkd_10": (13.8, 4.0), "dearkd_25": (6.0, 2.8), "dearkd_50": (4.0, 0.7), "dearkd": (2.6, 0.3),
    }  # fmt: skip
    others = {"dearkd": ("vit", "deit_100")}
    for row, printed in gaps.items():
        share = row.removeprefix("dearkd")
        for other, gap in zip(others.get(row, (f"vit{share}", f"deit{share}")), printed, strict=True):
            assert cells[row].value - cells[other].value == pytest.approx(gap)
