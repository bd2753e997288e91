"""The table of `vitutor compare` from simulated results: every number by hand or by SciPy."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from core.tests.report_samples import texts_of, write_run
from vitutor_core.report.leaderboard import Entrant, Spent, build_leaderboard, spent_by
from vitutor_core.report.leaderboard_page import write_board
from vitutor_core.report.leaderboard_text import composition_grid, head, line_grid, notes, print_board, to_markdown
from vitutor_core.report.results import Run, load_results
from vitutor_core.report.significance import contrast

VALUES = {
    "plain": [60.0, 62.0, 64.0],
    "plain_long": [62.0, 64.0, 66.0],
    "strong": [75.0, 76.0, 80.0],
    "weak": [61.0, 62.0, 66.0],
    "cnn": [70.0, 71.0, 72.0],
    "strong+weak": [74.0, 78.0, 79.0],
}
KINDS = {"plain": "plain", "plain_long": "long", "cnn": "model", "strong+weak": "composition"}
FLOPS = {"plain": 10.0, "plain_long": 40.0, "strong": 25.0, "weak": 11.0, "cnn": 30.0, "strong+weak": 26.0}
FACTS = {
    "scale": "small",
    "source": "cifar100",
    "student": {"name": "vit_tiny_patch16_224", "kwargs": {"depth": 4}, "parameters": 313000.0},
    "image_size": 32,
    "train_images": 1000,
    "evaluation_images": 2000,
    "seeds": [0, 1, 2],
    "updates": 56,
    "batch_size": 32,
}
TEACHER = {"name": "cnn", "model": "resnet8_tiny", "top1": 70.5, "train_images": 1000, "compute": 1.5}
TEACHER |= Spent(100, 3200, 30.0, 15.0)._asdict()


@pytest.fixture
def entrants(tmp_path: Path) -> list[Entrant]:
    found = []
    for name, values in VALUES.items():
        changes = {
            "config": {"student": {"name": "vit"}, "train": {"batch_size": 32}},
            "metrics": {"parameters": 4e5 if name == "cnn" else 313e3},
        }
        for seed, top1 in enumerate(values):
            metrics = {**changes["metrics"], "top1": top1, "images": 2000.0}
            write_run(tmp_path, name, seed, top1, changes | {"metrics": metrics, "seconds": 60.0 + seed})
        runs = load_results(tmp_path, "demo")[name]
        before = Spent(100, 3200, 30.0, 15.0) if "strong" in name else Spent()
        parts = tuple(name.split("+")) if "+" in name else ()
        own = "a CNN" if name == "cnn" else None
        kind = KINDS.get(name, "method")
        spent = spent_by(runs, FLOPS[name])
        found.append(Entrant(name, name.title(), kind, runs, spent, before, own=own, parts=parts))
    return found


@pytest.fixture
def board(entrants: list[Entrant]) -> dict:
    return json.loads(json.dumps(build_leaderboard(entrants, [TEACHER], FACTS), allow_nan=False))


def test_gains_errors_and_verdicts_are_those_of_scipy_and_holm(board):
    lines = {line["name"]: line for line in board["lines"]}
    assert [line["name"] for line in board["lines"]] == ["strong", "strong+weak", "cnn", "plain_long", "weak", "plain"]
    p = {}
    for name in VALUES.keys() - {"plain"}:
        gain = lines[name]["gain"]
        assert gain["mean"] == pytest.approx(statistics.fmean(VALUES[name]) - 62)
        error = math.sqrt(statistics.variance(VALUES[name]) / 3 + 4 / 3)
        assert gain["standard_error"] == pytest.approx(error)
        p[name] = stats.ttest_ind(VALUES[name], VALUES["plain"], equal_var=False).pvalue
        assert gain["p"] == pytest.approx(p[name])
    # Holm, by hand: of five, the smallest times five, then four, ..., never falling.
    adjusted, largest = {}, 0.0
    for left, name in zip((5, 4, 3, 2, 1), sorted(p, key=p.get), strict=True):
        largest = max(largest, left * p[name])
        adjusted[name] = min(largest, 1.0)
        assert lines[name]["verdict"]["p_holm"] == pytest.approx(adjusted[name])
    verdicts = {name: lines[name]["verdict"]["verdict"] for name in p}
    assert verdicts == {name: "above" if value <= 0.05 else "inconclusive" for name, value in adjusted.items()}
    assert verdicts["strong"] == "above"
    assert verdicts["weak"] == "inconclusive"


def test_as_much_compute_is_compared_with_the_student_trained_longer(board):
    lines = {line["name"]: line for line in board["lines"]}
    assert lines["strong"]["to_long"]["mean"] == pytest.approx(77 - 64)
    assert lines["weak"]["to_long"]["mean"] == pytest.approx(63 - 64)
    assert all(lines[name]["to_long"] is None for name in ("plain", "plain_long", "cnn"))
    expected = {"plain": 1.0, "plain_long": 4.0, "strong": 4.0, "weak": 1.1, "cnn": 3.0, "strong+weak": 4.1}
    assert {name: line["compute"] for name, line in lines.items()} == pytest.approx(expected)
    assert lines["strong"]["seconds"] == 61 + 30
    assert lines["strong"]["spent"] == {"updates": 56, "images": 56 * 32, "seconds": 61.0, "flops": 25.0}


def test_whether_gains_add_is_asked_of_four_rows_at_once(board):
    line = next(line for line in board["lines"] if line["parts"])
    assert line["sum"] == pytest.approx(15 + 1)
    assert line["extra"]["mean"] == pytest.approx(77 - 77 - 63 + 62)
    variances = [statistics.variance(VALUES[name]) / 3 for name in ("strong+weak", "strong", "weak", "plain")]
    assert line["extra"]["standard_error"] == pytest.approx(math.sqrt(sum(variances)))
    df = sum(variances) ** 2 / sum(variance**2 / 2 for variance in variances)
    assert line["extra"]["df"] == pytest.approx(df)
    assert line["verdict_of_extra"]["verdict"] == "inconclusive"


def test_a_contrast_of_answers_varies_as_many_drawn_seeds_and_images_do():
    """The standard error of four rows is what the sum spreads by when seeds and images are drawn anew."""
    generator = np.random.default_rng(0)
    signs, found, errors = (1, -1, -1, 1), [], []
    for _ in range(400):
        hard = generator.normal(size=(1, 300))
        rows = [hard + generator.normal(scale=0.3, size=(3, 1)) + generator.normal(size=(3, 300)) > 0 for _ in signs]
        estimate = contrast(rows, signs)
        found.append(float(estimate.mean))
        errors.append(float(estimate.standard_error))
        by_hand = 100 * sum(sign * row.mean() for row, sign in zip(rows, signs, strict=True))
        assert float(estimate.mean) == pytest.approx(by_hand)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(found), rel=0.1)


def test_no_line_is_the_highest_where_none_is_ahead(entrants):
    easy, smoke = changed(entrants, **dict.fromkeys(VALUES, [100.0] * 3)), {**FACTS, "source": "digits"}
    for facts in (FACTS, smoke):
        assert build_leaderboard(easy, [], facts)["answer"] == (
            "All lines are right on all 2,000 evaluation images, which are too easy or too few to tell methods apart."
        )
    equal = build_leaderboard(changed(entrants, **dict.fromkeys(VALUES, [50.0] * 3)), [], FACTS)["answer"]
    assert equal == "All lines have the same mean accuracy (50.0 %): with these images no method is seen to help."
    level = {"strong": VALUES["plain"], "weak": [59.0, 61.0, 63.0]}
    for facts in (FACTS, smoke):
        found = build_leaderboard(changed(entrants, **level), [], facts)["answer"]
        assert "highest" not in found
        assert "closest" in found


def test_the_answer_names_the_best_and_says_how_sure_that_is(board, entrants):
    assert board["answer"] == (
        "With these images Strong has the highest gain of all methods: +15.0 +- 1.9 points at 4.0 times the compute, "
        "beyond chance among 5 lines. Training the student alone for 4.0 times the compute gives +2.0 points, less "
        "than the method."
    )
    without = [entrant for entrant in entrants if "strong" not in entrant.name]
    found = build_leaderboard(without, [], FACTS)["answer"]
    assert found.startswith(
        "With these images no method is seen to help: the highest, Weak, has +1.0 +- 1.9 points at 1.1"
    )
    assert "would have been seen with 80 % chance" in found
    smoke = build_leaderboard(entrants, [], {**FACTS, "source": "digits"})
    assert "smoke test" in smoke["answer"]
    assert {line["verdict"] for line in smoke["lines"] if line["kind"] == "method"} == {None}
    alone = build_leaderboard(entrants[:1], [], FACTS)
    assert alone["answer"] == "No method was run beside the student alone."


def changed(entrants, **values):
    """Give lines other accuracies."""
    found = []
    for one in entrants:
        if one.name in values:
            runs = [
                replace(run, result=run.result.model_copy(update={"metrics": {**run.result.metrics, "top1": top1}}))
                for run, top1 in zip(one.runs, values[one.name], strict=False)
            ]
            one = one._replace(runs=runs)  # noqa: PLW2901
        found.append(one)
    return [one for one in found if one.kind in {"plain", "method"}]


def test_what_helps_is_named_even_where_another_mean_is_higher(entrants):
    found = build_leaderboard(changed(entrants, weak=[40.0, 80.0, 120.0]), [], FACTS)["answer"]
    assert found.startswith(
        "With these images Strong helps: +15.0 +- 1.9 points at 4.0 times the compute, beyond chance among "
        "2 lines. The highest mean is that of Weak, +18.0 +- 23.1 points at 1.1 times the compute, inconclusive; a gain"
    )
    single = build_leaderboard(changed(entrants, weak=[90.0]), [], FACTS)["answer"]
    assert "among 1 lines. The highest mean is that of Weak, +28.0 points" in single
    assert single.endswith("which cannot be tested with one seed.")


def test_a_harm_or_an_untested_gain_is_not_called_inconclusive(entrants):
    harm = build_leaderboard(changed(entrants, weak=[30.0, 31.0, 32.0], strong=[20.0, 21.0, 22.0]), [], FACTS)
    assert harm["answer"].startswith(
        "With these images no method is seen to help: none is above the student alone, and the closest, Weak, has -31.0"
    )
    assert harm["answer"].endswith(", worse than the student alone.")
    untested = build_leaderboard([one._replace(runs=one.runs[:1]) for one in entrants], [], FACTS)["answer"]
    assert untested.endswith("has +15.0 points at 4.0 times the compute, which cannot be tested with one seed.")


def test_a_line_that_took_more_compute_than_the_longer_student_is_not_held_against_it(entrants):
    dear = [one._replace(before=Spent(flops=16.0)) if one.name == "strong" else one for one in entrants]
    lines = {line["name"]: line for line in build_leaderboard(dear, [], FACTS)["lines"]}
    assert lines["strong"]["compute"] == pytest.approx(4.1)
    assert lines["strong"]["to_long"] is lines["strong+weak"]["to_long"] is None
    assert lines["weak"]["to_long"] is not None
    answer = build_leaderboard(dear, [], FACTS)["answer"]
    assert answer.endswith(", beyond chance among 5 lines.")


def test_one_seed_has_gains_and_no_verdicts(entrants):
    single = [entrant._replace(runs=entrant.runs[:1]) for entrant in entrants]
    lines = {line["name"]: line for line in build_leaderboard(single, [], FACTS)["lines"]}
    assert lines["strong"]["gain"] == {"mean": 15.0, "standard_error": None, "df": None, "p": None, "over": None}
    assert lines["strong"]["verdict"]["verdict"] == "not run"
    assert lines["strong+weak"]["extra"]["mean"] == 74 - 75 - 61 + 60


def test_a_composition_of_three_alone_has_no_matrix(entrants, tmp_path):
    parts = ("strong", "weak", "cnn")
    changed = [one._replace(parts=parts, name="all") if one.parts else one for one in entrants]
    rows = {entrant.name: list(entrant.runs) for entrant in changed}
    files = {path.name for path in write_board(build_leaderboard(changed, [], FACTS), rows, tmp_path / "out")}
    assert "compare-gains.svg" in files
    assert "compare-matrix.svg" not in files


def test_a_teacher_of_other_images_is_named(board):
    assert "was trained on" not in " ".join(notes(board))
    few = board | {"train_images": 100}
    assert "The teacher cnn was trained on 1,000 images; the students on 100." in notes(few)


def test_terminal_markdown_and_page_have_the_same_cells(board, entrants, tmp_path, capsys):
    headings, cells = line_grid(board)
    by_line = {row[0]: dict(zip(headings, row, strict=True)) for row in cells}
    assert by_line["Strong"]["gain"] == "+15.0 +- 1.9"
    assert (by_line["Strong"]["verdict"], by_line["Weak"]["verdict"]) == ("helps", "inconclusive")
    assert (by_line["Strong"]["compute"], by_line["Strong"]["before"]) == ("4.0x", "100")
    assert (by_line["Strong"]["images"], by_line["Strong"]["student"]) == (f"{56 * 32 + 3200:,}", "common")
    assert (by_line["Cnn"]["student"], by_line["Plain"]["gain"]) == ("own, 0.40 M", "base")
    assert (by_line["teacher cnn"]["top-1"], by_line["teacher cnn"]["student"]) == ("70.5", "resnet8_tiny")
    shared = dict(head(board))
    assert shared["images"] == "1,000 of cifar100 to train on, 2,000 to evaluate on; 32 px"
    assert shared["student"] == "vit_tiny_patch16_224 (depth 4), 313,000 parameters"
    composed = composition_grid(board)
    assert composed is not None
    (row,) = composed[1]
    assert row[:6] == ["Strong+Weak", "77.0 +- 2.6", "+15.0 +- 1.9", "+16.0", "-1.0 +- 2.9", "inconclusive"]
    assert row[7] == "4.1x"

    rows: dict[str, list[Run]] = {entrant.name: list(entrant.runs) for entrant in entrants}
    files = {path.name: path for path in write_board(board, rows, tmp_path / "out")}
    assert files.keys() == {*("compare.json", "compare.md", "compare.html", "compare-gains.svg", "compare-matrix.svg")}
    page = files["compare.html"].read_text()
    markdown = to_markdown(board)
    print_board(board)
    said = capsys.readouterr().out
    assert all(
        text in page
        for text in ("Strong has the highest gain", "+15.0\u00a0\u00b1\u00a01.9", "Do gains add?", "0123456789")
    )
    assert all(text in markdown for text in ("| Strong | common | 77.0 \u00b1 2.6 |", "## Do gains add?", "a CNN"))
    assert "Strong has the highest gain" in said
    assert "<script" not in page
    assert {"Strong", "Weak", "Cnn"} <= set(texts_of(files["compare-gains.svg"]))
    assert "+15.0" in " ".join(texts_of(files["compare-matrix.svg"]))
