"""What is said of differences; all numbers are synthetic, and expected values are worked out by hand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from core.tests.report_samples import PAPER, build, demo_paper, pair_of, write_row, write_run
from vitutor_core.errors import DataError
from vitutor_core.evaluate.accuracy import pack
from vitutor_core.report.html import write_report
from vitutor_core.report.paper import PaperResults, load_paper_results
from vitutor_core.report.render import listed, to_markdown
from vitutor_core.report.results import load_results
from vitutor_core.report.significance import p_value, smallest_effect, spread
from vitutor_core.report.verdict import Pair, judge, sentence, summary


@pytest.fixture
def paper(tmp_path: Path) -> PaperResults:
    return demo_paper(tmp_path)


@pytest.mark.parametrize(
    ("values", "verdict", "sentence"),
    [
        ([95.0, 96.0, 97.0], "confirmed", "OURS is 5.0 +- 0.8 points above plain model (paper: +2.3): confirmed."),
        (
            [85.0, 86.0, 87.0],
            "contradicted",
            "OURS is 5.0 +- 0.8 points below plain model (paper: +2.3): contradicted.",
        ),
        (
            [92.0, 93.0, 94.0],
            "inconclusive",
            "OURS minus plain model: +2.0 +- 0.8 points, inconclusive (3.1 would be seen with 80 % chance).",
        ),
        ([95.0], "not run", "OURS minus plain model: not run with several seeds (+4.0 points from one)."),
    ],
)
def test_verdict_follows_the_numbers(
    paper: PaperResults, tmp_path: Path, values: list[float], verdict: str, sentence: str
) -> None:
    """The baseline is 91 +- 1 with three seeds: t has 4 degrees of freedom, and two standard errors are not enough."""
    write_row(tmp_path, "plain", [90.0, 91.0, 92.0])
    write_row(tmp_path, "ours", values)
    table = build(paper, tmp_path)
    pair = pair_of(table, "ours", "plain")
    assert (pair["verdict"], pair["sentence"]) == (verdict, sentence)
    assert f"1 {verdict}" in table["summary"] or verdict == "not run"
    chance = "about 0.05 differences in one table" if len(values) > 1 else "about 0 differences in 0 tables"
    assert chance in table["summary"]


def test_verdicts_of_a_table_share_its_five_percent(paper: PaperResults, tmp_path: Path) -> None:
    """Student's t is 3.0 and 2.9 at 4 degrees of freedom: p = 0.040 and 0.044, of which only one alone is enough."""
    write_row(tmp_path, "plain", [90.0, 91.0, 92.0])
    for row, t in (("ours", 3.0), ("part", 2.9)):
        write_row(tmp_path, row, [value + t * math.sqrt(2 / 3) for value in (90.0, 91.0, 92.0)])
    table = build(paper, tmp_path)
    ours, part = (pair_of(table, row, "plain") for row in ("ours", "part"))
    assert (ours["ours"]["p"], ours["p_holm"]) == (pytest.approx(0.0399, abs=1e-4), pytest.approx(0.0798, abs=2e-4))
    assert ours["verdict"] == part["verdict"] == "inconclusive"
    # Both were held against 2.5 %.
    assert ours["smallest"] == part["smallest"] == pytest.approx(float(smallest_effect(math.sqrt(2 / 3), 4, 0.025)))


def test_a_difference_that_the_paper_does_not_print() -> None:
    found = [{"mean": mean, "standard_error": 1.0, "df": 4.0, "p": 1e-4} for mean in (5.0, -5.0)]
    pairs = [Pair(printed, None, one) for printed in (None, 0.0) for one in found]
    assert [one["verdict"] for one in judge(pairs)] == ["above", "below"] * 2


@pytest.mark.parametrize(
    ("printed", "mean", "verdict"),
    [
        (12.9, 0.2, "smaller"),
        (-12.9, 0.2, "smaller"),  # the other side of zero is short of it, too
        (4.0, 0.2, "inconclusive"),  # t of what is missing is 3.8, and 4.1 is asked for: 2.5 %, since two are tested
        (-0.1, -1.5, "inconclusive"),  # more than the paper's, but not seen
        (0.0, 0.2, "inconclusive"),
        (12.9, 8.0, "confirmed"),  # seen, and the size is not judged
    ],
)
def test_no_difference_where_the_paper_prints_a_large_one(printed: float, mean: float, verdict: str) -> None:
    """With a standard error of 1 and 3 degrees of freedom; the second pair of the table is as in the paper."""
    found = [{"mean": value, "standard_error": 1.0, "df": 3.0, "p": p} for value, p in ((mean, 0.9), (1.0, 0.9))]
    found[0]["p"] = 1e-3 if verdict == "confirmed" else 0.3
    assert [one["verdict"] for one in judge([Pair(printed, None, found[0]), Pair(1.0, None, found[1])])] == [
        verdict,
        "inconclusive",
    ]


@pytest.mark.parametrize(
    ("true", "printed", "least", "most"), [(1.0, 1.0, 1, 50), (0.0, 3.0, 900, 1000)], ids=["as large", "none"]
)
def test_one_table_of_twenty_at_most_is_called_smaller_by_chance(
    true: float, printed: float, least: int, most: int
) -> None:
    """1,000 tables of four differences, by five seeds of standard deviation 1 for each row."""
    values = np.random.default_rng(5).standard_normal((1000, 5, 5)) + true * np.array([0, 1, 1, 1, 1])[:, None]
    found = spread([values[:, 1:], values[:, :1]], (1, -1))
    numbers = zip(*(np.broadcast_to(part, (1000, 4)) for part in (*found, p_value(found))), strict=True)
    said = 0
    for table in numbers:
        pairs = [
            Pair(printed, None, dict(zip(("mean", "standard_error", "df", "p"), one, strict=True)))
            for one in zip(*table, strict=True)
        ]
        said += any(one["verdict"] == "smaller" for one in judge(pairs))
    assert least <= said <= most


def test_a_smaller_difference_is_said_wherever_verdicts_are(tmp_path: Path) -> None:
    """Ours is +0.3 +- 0.8 with 4 degrees of freedom where 12 are printed."""
    path = tmp_path / "paper_results.yaml"
    path.write_text(PAPER.replace("top1: 72.3", "top1: 82.0"))
    write_row(tmp_path, "plain", [90.0, 91.0, 92.0])
    write_row(tmp_path, "ours", [90.3, 91.3, 92.3])
    table = build(load_paper_results(path), tmp_path)
    pair = pair_of(table, "ours", "plain")
    assert pair["sentence"] == "OURS minus plain model: +0.3 +- 0.8 points, short of the paper's +12.0: smaller."
    assert pair["smallest"] == pytest.approx(float(smallest_effect(math.sqrt(2 / 3), 4, 0.05)))
    assert "0 inconclusive, 1 smaller than the paper's" in table["summary"]
    assert sum(note.startswith("Smaller: ") for note in table["notes"]) == 1


def test_a_smaller_difference_on_the_other_side_is_not_short_of_the_papers() -> None:
    found, judged = {"mean": 1.7, "standard_error": 0.6}, {"verdict": "smaller"}
    said = sentence("ours", "plain", "", found, judged, printed=-0.6)
    assert said == "Ours minus plain: +1.7 +- 0.6 points, on the other side of the paper's -0.6: smaller."


@pytest.mark.parametrize(
    ("verdicts", "counted"),
    [
        (("smaller", 1.0), "1 inconclusive, 1 smaller"),  # the same in both tables
        (("inconclusive", 1.0), "2 inconclusive"),  # as likely by chance in both, as where nothing at all is seen
        (("inconclusive", 0.5), "2 inconclusive"),  # the first table tests more, the second prints less
        (("confirmed", 0.01), "1 inconclusive, 1 smaller"),  # seen in the smaller table alone
    ],
)
def test_a_comparison_of_two_tables_is_smaller_only_if_it_is_in_both(verdicts: tuple[str, float], counted: str) -> None:
    first = [
        {"row": "a", "to": "b", "verdict": "smaller", "p_holm": 1.0},
        {"row": "c", "to": "b", "verdict": "inconclusive", "p_holm": 1.0},
    ]
    second = [{"row": "a", "to": "b", "verdict": verdicts[0], "p_holm": verdicts[1]}]
    for tables in ([first, second], [second, first]):
        assert f"Of 2 differences in the paper's tables: 0 confirmed, 0 contradicted, {counted}" in summary(tables)


@pytest.mark.parametrize(("claim", "verdict"), [("above", "confirmed"), ("below", "contradicted")])
def test_a_side_that_the_text_claims_is_judged_like_printed_numbers(tmp_path: Path, claim: str, verdict: str) -> None:
    path = tmp_path / "paper_results.yaml"
    silent = re.sub(r"top1: [\d.]+", "top1: null", PAPER)
    path.write_text(silent.replace("{row: ours, to: plain,", f"{{row: ours, to: plain, claim: {claim},"))
    for row, top1 in (("plain", 80.0), ("ours", 90.0)):
        write_row(tmp_path, row, [top1, top1 + 1, top1 + 2])
    pair = pair_of(build(load_paper_results(path), tmp_path), "ours", "plain")
    assert (pair["paper"], pair["claim"], pair["verdict"]) == (None, claim, verdict)
    assert verdict in pair["sentence"]


def test_a_claim_stands_wherever_the_papers_difference_does(tmp_path: Path) -> None:
    path = tmp_path / "paper_results.yaml"
    silent = re.sub(r"top1: [\d.]+", "top1: null", PAPER)
    path.write_text(silent.replace("{row: ours, to: plain,", "{row: ours, to: plain, claim: above,"))
    write_row(tmp_path, "plain", [80.0, 81.0])
    write_row(tmp_path, "ours", [90.0, 91.0])
    table = build(load_paper_results(path), tmp_path)
    write_report(table, load_results(tmp_path, "demo"), [], tmp_path / "report.html")
    assert "paper: above" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "| OURS minus plain model | above |" in to_markdown(table)
    for pair in table["tables"][0]["comparisons"]:
        del pair["claim"]  # as a table of an older version
    assert "| OURS minus plain model | - |" in to_markdown(table)


def test_numbers_that_are_printed_need_no_claim(tmp_path: Path) -> None:
    path = tmp_path / "paper_results.yaml"
    path.write_text(PAPER.replace("{row: ours, to: plain,", "{row: ours, to: plain, claim: above,"))
    with pytest.raises(DataError, match="'ours' with 'plain': both are printed, so it needs no claim"):
        load_paper_results(path)


@pytest.mark.parametrize(
    ("seeds", "text"), [([0, 1, 2], "0, 1, 2"), (range(20), "0 to 19"), ([0, 1, 2, 3, 4, 6], "0, 1, 2, 3, 4, 6")]
)
def test_many_seeds_in_a_row_are_listed_by_the_first_and_the_last(seeds: Sequence[int], text: str) -> None:
    assert listed(seeds) == text


def test_equal_rows_are_not_different(paper: PaperResults, tmp_path: Path) -> None:
    write_row(tmp_path, "plain", [90.0, 90.0])
    write_row(tmp_path, "ours", [90.0, 90.0])
    pair = pair_of(build(paper, tmp_path), "ours", "plain")
    assert (pair["verdict"], pair["smallest"]) == ("inconclusive", None)


def write_answers(root: Path, row: str, answers: list[list[int]], **data: str) -> None:
    for seed, right in enumerate(answers):
        top1 = 100 * sum(right) / len(right)
        packed = pack(torch.tensor(right, dtype=torch.bool))
        changes = {"metrics": {"top1": top1, "images": float(len(right))}, "correct": {"top1": packed}}
        write_run(root, row, seed, top1, changes | {"config": {"data": data}})


def test_rows_are_compared_image_by_image(paper: PaperResults, tmp_path: Path) -> None:
    """The numbers of `test_paired_by_hand`; on other images the same answers are not comparable one by one."""
    write_answers(tmp_path, "plain", [[0, 0, 1, 1], [0, 0, 1, 0]])
    write_answers(tmp_path, "ours", [[1, 1, 1, 0], [1, 1, 1, 0]])
    write_answers(tmp_path, "part", [[1, 1, 1, 0], [1, 1, 1, 0]], source="other")
    table = build(paper, tmp_path)
    found = pair_of(table, "ours", "plain")["ours"]
    assert (found["standard_error"], found["over"]) == (pytest.approx(37.5), "seeds and images")
    assert pair_of(table, "part", "plain")["ours"]["over"] == "seeds"
    assert any("the errors of some differences" in note for note in table["notes"])


def test_answers_that_do_not_give_the_accuracy(tmp_path: Path) -> None:
    write_answers(tmp_path, "plain", [[0, 0, 1, 1]])
    path = tmp_path / "demo" / "plain" / "seed-0" / "metrics.json"
    for wrong in ("70", "3000", "no"):
        path.write_text(path.read_text().replace(json.loads(path.read_text())["correct"]["top1"], wrong))
        with pytest.raises(DataError, match=r"evaluate this row again$"):
            load_results(tmp_path, "demo")


def test_a_smoke_test_has_numbers_and_no_verdicts(paper: PaperResults, tmp_path: Path) -> None:
    for row, values in (("plain", [90.0, 91.0, 92.0]), ("ours", [95.0, 96.0, 97.0])):
        for seed, value in enumerate(values):
            write_run(tmp_path, row, seed, value, {"scale": "digits"})
    table = build(paper, tmp_path)
    pair = pair_of(table, "ours", "plain")
    assert (pair["ours"]["mean"], pair["verdict"]) == (5.0, None)
    assert pair["sentence"] == "OURS minus plain model: +5.0 +- 0.8 points."
    text = to_markdown(table)
    assert "Scale digits (smoke test)" in text
    assert "| OURS minus plain model | +2.3 | +5.0 ± 0.8 |\n" in text
    for word in ("confirmed", "contradicted", "inconclusive", "verdict |"):
        assert word not in text
