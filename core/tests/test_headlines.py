"""The figure of what the papers are about: which differences it shows, and where their intervals end."""

from __future__ import annotations

import json
import re

import pytest
from scipy import stats

from vitutor_core.report.headlines import headline_figure


def pair(verdict, mean, *, headline=True, claim=None, paper=None):
    ours = None if verdict == "not run" else {"mean": mean, "standard_error": 0.5, "df": 8.0, "p": 0.01}
    names = {"subject": f"method {mean}", "reference": "none", "where": ""}
    return {"headline": headline, "ours": ours, "verdict": verdict, "claim": claim, "paper": paper, **names}


def publish(folder, paper, *pairs):
    table = {"paper": paper, "scale": "small", "tables": [{"comparisons": list(pairs)}]}
    (folder / f"{paper}.json").write_text(json.dumps(table))
    (folder / f"{paper}-runs.json").write_text("[]")


def test_judged_headlines_of_all_papers_stand_in_order(tmp_path):
    publish(tmp_path, "one", pair("inconclusive", 0.5, claim="above"), pair("confirmed", 9.0, headline=False))
    publish(
        tmp_path, "two", pair("confirmed", 3.0, paper=2.0), pair("not run", 7.0), pair("contradicted", -1.0, paper=4)
    )
    publish(tmp_path, "three", pair("above", 5.0))
    (tmp_path / "regime.json").write_text("{}")  # other files may lie beside them
    (tmp_path / "digits-runs.json").write_text("[]")
    (tmp_path / "digits.json").write_text('{"lines": []}')  # such as a comparison
    (tmp_path / "alone-runs.json").write_text("[]")
    picture = headline_figure(tmp_path)
    assert picture.path == tmp_path / "headlines.svg"
    assert picture.title.endswith("scale small")
    told = re.findall(r"(\w+), method (\S+) minus none: \S+ \+- 0\.5, (\w+) \(paper: (\S+)\)", picture.alt)
    assert told == [
        ("three", "5.0", "above", "-"),  # of which the paper names no side
        ("two", "3.0", "confirmed", "+2.0"),
        ("one", "0.5", "inconclusive", "above"),
        ("two", "-1.0", "contradicted", "+4.0"),
    ]


def test_an_interval_is_that_of_students_t(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.errorbar", lambda *given, **style: drawn.append((given[1:], style["xerr"]))
    )
    publish(tmp_path, "one", pair("confirmed", 3.0, paper=2.0))
    headline_figure(tmp_path)
    low, high = stats.t.interval(0.95, 8, loc=3.0, scale=0.5)
    ((mean, _), half) = drawn[0]
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_without_verdicts_there_is_no_figure(tmp_path):
    publish(tmp_path, "one", pair("confirmed", 3.0, paper=2.0))
    assert headline_figure(tmp_path).path.exists()
    publish(tmp_path, "one", pair(None, 3.0, paper=2.0))
    assert headline_figure(tmp_path) is None
    assert not (tmp_path / "headlines.svg").exists()
