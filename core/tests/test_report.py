"""All numbers here are synthetic; expected values are worked out by hand."""

from __future__ import annotations

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from core.tests.report_samples import (
    PAPER,
    build,
    demo_paper,
    elements,
    line_of,
    pair_of,
    texts_of,
    write_row,
    write_run,
)
from vitutor_core.errors import DataError, ResourceError
from vitutor_core.report.drawing import COLOURS, THEME, style_of, told_apart
from vitutor_core.report.html import write_report
from vitutor_core.report.paper import PaperResults, load_paper_results
from vitutor_core.report.plots import _epochs_below, draw_figures
from vitutor_core.report.render import print_table, scope, to_markdown
from vitutor_core.report.results import load_results
from vitutor_core.report.table import build_table


@pytest.fixture
def paper(tmp_path: Path) -> PaperResults:
    return demo_paper(tmp_path)


# --- the table ---------------------------------------------------------------------------------------------------


def test_numbers_by_hand(paper: PaperResults, tmp_path: Path) -> None:
    write_row(tmp_path, "plain", [90.0, 91.0, 92.0])
    write_row(tmp_path, "ours", [94.0, 96.0, 95.0])
    table = build(paper, tmp_path)
    line = line_of(table, "ours")
    assert line["ours"] == {"mean": 95.0, "sd": 1.0, "n": 3, "seeds": [0, 1, 2], "values": [94.0, 96.0, 95.0]}
    assert line["paper"] == 72.3
    assert line["paper_difference"] == 2.3
    # Both have a standard deviation of 1 over 3 seeds: sqrt(1/3 + 1/3).
    assert line["difference"] == {
        "mean": 4.0,
        "standard_error": pytest.approx(math.sqrt(2 / 3)),
        "df": pytest.approx(4),
        "p": pytest.approx(0.00805, abs=5e-6),  # Student's t of 4.899
        "over": "seeds",
    }
    assert (line["train_images"], line["epochs"], line["updates"]) == (898, 4, 56)
    assert line["command"] == "demo train --row ours --set seed=0 > '<out>'"
    base = line_of(table, "plain")
    assert base["is_baseline"]
    assert base["difference"] is base["paper_difference"] is None
    assert table["seeds"] == [0, 1, 2]
    assert table["evaluation_images"] == [900]
    assert [part["id"] for part in table["tables"]] == ["ablation", "data"]


def test_another_metric_of_a_row_in_another_unit(tmp_path: Path) -> None:
    text = PAPER.replace("methods: {", 'methods: {"ours:agent": the agent of OURS, ')
    text += """
  - id: distance
    title: Table D
    caption: distances
    metric: distance
    unit: nats
    decimals: 3
    columns: {distance: Distance}
    measured: [distance]
    baseline: ours
    rows:
      - {label: own, cells: {distance: 0.25}, row: ours}
      - {label: agent, cells: {distance: 0.21}, row: "ours:agent"}
    comparisons: [{row: "ours:agent", to: ours}]
"""
    path = tmp_path / "paper_results.yaml"
    path.write_text(text)
    paper = load_paper_results(path)
    for seed, distance in enumerate((0.25, 0.27)):
        metrics = {"top1": 90.0 + seed, "images": 900.0, "distance": distance, "agent": distance - 0.04}
        write_run(tmp_path, "ours", seed, 0.0, {"metrics": metrics})
    table = build(paper, tmp_path)
    (agent,) = [line for part in table["tables"] for line in part["lines"] if line["row"] == "ours:agent"]
    assert agent["ours"]["mean"] == pytest.approx(0.22)
    assert agent["difference"]["mean"] == pytest.approx(-0.04)
    assert agent["train_images"] == 898
    # Both have a standard deviation of sqrt(2) / 100 over 2 seeds: sqrt(1e-4 + 1e-4), and t at 2 degrees of freedom
    # is seen with 80 % chance from 5.6535 standard errors on.
    sentence = (
        "The agent of OURS minus OURS: -0.040 +- 0.014 nats, inconclusive (0.080 would be seen with 80 % chance)."
    )
    assert pair_of(table, "ours:agent", "ours")["sentence"] == sentence
    assert table["further"] == []
    markdown = to_markdown(table)
    assert "| agent | 0.210 | -0.040 | 0.220 ± 0.014 | -0.040 ± 0.014 | 2 | 898 | 56 |" in markdown
    assert paper.title_of("ours_10:agent") == "the agent of OURS"
    assert paper.title_of("ours_10:other") == "OURS"


def test_variants_compose_titles_and_have_colours_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "paper_results.yaml"
    added = 'variants: {small: on few images, long: ", long", long_tail: on a long tail}\ncolours: {part_long: 9}\n'
    path.write_text(PAPER.replace("curves:", added + "curves:"))
    paper = load_paper_results(path)
    titles = {
        "ours": "OURS",
        "ours_10": "OURS",
        "ours_small": "OURS on few images",
        "ours_small_long": "OURS on few images, long",
        "ours_long_tail_small_10": "OURS on a long tail on few images",
        "ours_smaller": "OURS",
        "ours_10_small": "OURS",
        "nobody_small": "nobody_small",
    }
    assert {row: paper.title_of(row) for row in titles} == titles
    assert paper.method_of("ours_long_tail_small_10") == "ours_long_tail_small"
    assert paper.method_of(paper.method_of("ours_small_10") or "") == "ours_small"
    assert paper.method_of("nobody_small") is None
    # The methods have the places 0 to 2; a variant moves by its own place, from 1.
    places = {
        "plain": 0,
        "ours": 1,
        "ours_10": 1,
        "ours_small": 2,
        "ours_long": 3,
        "ours_small_long": 4,
        "part_long": 9,
    }
    assert {row: paper.position_of(row) for row in places} == places
    assert style_of(paper, "part_long_10")["color"] == COLOURS[9 % len(COLOURS)]
    path.write_text(PAPER.replace("curves:", "colours: {ours_small: 1}\ncurves:"))
    with pytest.raises(DataError, match=r"'colours' of no method with variants: \['ours_small'\]"):
        load_paper_results(path)


def test_rows_without_results_are_kept_empty(paper: PaperResults, tmp_path: Path) -> None:
    write_row(tmp_path, "plain", [90.0, 91.0])
    table = build(paper, tmp_path)
    assert len(table["tables"][0]["lines"]) == 4
    missing = line_of(table, "part")
    assert missing["ours"] is missing["difference"] is missing["train_images"] is missing["command"] is None
    assert missing["paper_difference"] == 1.5
    assert pair_of(table, "part", "plain")["verdict"] == "not run"
    assert pair_of(table, "part", "plain")["sentence"] == "Half of OURS against plain model: not run."


def test_shares_of_the_data(paper: PaperResults, tmp_path: Path) -> None:
    write_row(tmp_path, "plain", [90.0, 90.0, 91.0, 91.0])
    write_row(tmp_path, "plain_10", [70.0, 70.0, 72.0, 72.0])
    write_row(tmp_path, "ours_10", [80.0, 80.0, 82.0, 82.0])
    table = build(paper, tmp_path)
    pair = pair_of(table, "ours_10", "plain_10")
    assert pair["paper"] == 14.0
    assert (pair["ours"]["mean"], pair["ours"]["standard_error"]) == (10.0, pytest.approx(math.sqrt(2 / 3)))
    stem = "OURS is 10.0 +- 0.8 points above plain model at 10 % of the data"
    assert pair["sentence"] == f"{stem} (paper: +14.0): confirmed."
    across = pair_of(table, "ours_10", "plain")
    stem = "OURS at 10 % of the data is 9.5 +- 0.6 points below plain model with all the data"
    assert across["sentence"] == f"{stem} (paper: -16.0): confirmed."


def test_further_rows_and_the_papers_own_scale(paper: PaperResults, tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 0, 70.0, {"scale": "imagenet"})
    write_run(tmp_path, "own_idea", 0, 71.0, {"scale": "imagenet"})
    table = build(paper, tmp_path)
    assert [(line["row"], line["ours"]["mean"]) for line in table["further"]] == [("own_idea", 71.0)]
    assert not any("different scales" in note for note in table["notes"])


def test_a_table_is_shown_at_its_scales(paper: PaperResults, tmp_path: Path) -> None:
    write_row(tmp_path, "plain", [90.0, 91.0])
    first, second, *others = paper.tables
    for scales, shown in ((("digits", "small"), ["ablation", "data"]), (("imagenet",), ["data"])):
        changed = paper.model_copy(update={"tables": (first.model_copy(update={"scales": scales}), second, *others)})
        assert [table["id"] for table in build(changed, tmp_path)["tables"]] == shown


def test_missing_metric(paper: PaperResults, tmp_path: Path) -> None:
    write_run(tmp_path, "plain", 0, 90.0, {"metrics": {"loss": 1.0}})
    with pytest.raises(DataError, match="no metric 'top1'"):
        build_table(paper, load_results(tmp_path, "demo"))


# --- text --------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(paper: PaperResults, tmp_path: Path) -> Path:
    for row, values in (
        ("plain", [90.0, 91.0, 92.0]),
        ("part", [91.0, 93.0, 92.0]),
        ("ours", [94.0, 96.0, 95.0]),
        ("plain_10", [70.0, 72.0, 71.0]),
        ("ours_10", [80.0, 83.0, 81.0]),
        ("own_idea", [88.0, 88.5, 89.0]),
    ):
        write_row(tmp_path, row, values)
    return tmp_path


def test_terminal_fits_100_columns(paper: PaperResults, full: Path) -> None:
    table = build(paper, full)
    out = io.StringIO()
    print_table(table, Console(file=out, width=100))
    text = out.getvalue()
    assert max(map(len, text.splitlines())) <= 100
    assert "Scale small; seeds 0, 1, 2; 90 to 898 training images; 56 updates per run." in text
    assert "different scales" in " ".join(text.split())
    assert re.search(r"with A +71\.5 +\+1\.5 +92\.0 \+- 1\.0 +\+1\.0 \+- 0\.8 +3 +898 +56", text)
    assert re.search(r"not ours +60\.0 +-10\.0 +- +- +- +- +-", text)
    assert re.search(r"own_idea +88\.5 \+- 0\.5 +3", text)
    assert "OURS is 4.0 +- 0.8 points above plain model (paper: +2.3): confirmed." in " ".join(text.split())
    assert table["summary"] in " ".join(text.split())


def test_epochs_on_axes_are_whole() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_xlim(0, 3)
    _epochs_below(axes, ())
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_markdown(paper: PaperResults, full: Path) -> None:
    text = to_markdown(build(paper, full))
    assert "| with A | yes | 71.5 | +1.5 | 92.0 ± 1.0 | +1.0 ± 0.8 | 3 | 898 | 56 |" in text
    assert "| OURS minus plain model at 10 % of the data | +14.0 | +10.3 ± 1.1 | confirmed | - |" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


# --- figures and page --------------------------------------------------------------------------------------------


def test_figures(paper: PaperResults, full: Path, tmp_path: Path) -> None:
    table = build(paper, full)
    pictures = draw_figures(paper, table, load_results(full, "demo"), tmp_path / "figures")
    names = [picture.path.stem for picture in pictures]
    assert names == ["ablation-ablation", "fraction-data", "learning-curves", "learning-curves-3", "heights"]
    assert "10 %, OURS: 81.3 +- 1.5, paper 54.0" in pictures[1].alt
    assert "all: +4.0 +- 0.8, paper +2.3" in pictures[0].alt
    assert "OURS: 95.0" in pictures[2].alt
    assert (pictures[3].title, "OURS: 81.3" in pictures[3].alt) == ("Shares", True)
    assert "height (m)" in pictures[4].alt
    assert pictures[4].alt.endswith("OURS: 8.5, 9.5.")  # line 9 is before line 10; the plain model has none
    assert pictures[4].caption == "How high. The number at the end of a line counts from 1. Dashed: help leaves."
    assert pictures[2].caption.endswith("one standard deviation. Dashed: help leaves.")
    for picture in pictures:
        assert {"measured here (small)", "whole training (small)", "OURS (small)"} & set(texts_of(picture.path))
    again = draw_figures(paper, table, load_results(full, "demo"), tmp_path / "again")
    assert [picture.path.read_bytes() for picture in again] == [picture.path.read_bytes() for picture in pictures]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(f"{name}.svg" for name in names)


def test_figures_follow_the_colours_of_the_page(paper: PaperResults, full: Path, tmp_path: Path) -> None:
    for picture in draw_figures(paper, build(paper, full), load_results(full, "demo"), tmp_path / "figures"):
        text = picture.path.read_text()
        assert text.count(THEME) == 1
        texts = [element.attrib["style"] for element in elements(picture.path, "text")]
        assert all("fill: var(--ink)" in style for style in texts)
        assert "stroke: var(--line)" in text
        drawn = text.replace(THEME, "")
        # What is not a variable is visible on both pages; black and white are not.
        colours = {colour.lower() for colour in re.findall(r"#[0-9A-Fa-f]{6}\b", drawn)}
        assert not colours & {"#000000", "#ffffff", *re.findall(r"#\w{6}", THEME)}
        background, *_ = re.findall(r'id="patch_\d+">.*?style="([^"]*)"', drawn, re.DOTALL)
        assert background == "fill: none"
        assert "dc:date" not in text


def test_figures_say_what_they_show(tmp_path: Path) -> None:
    text = PAPER.replace("label: all, cells: {a: true", "label: with A, cells: {a: true")
    text = text.replace("caption: parts\n", "caption: parts\n    setting: CIFAR-100\n")
    more = "      - {label: nobody, cells: {}, row: part_10}\n      - {label: own, cells: {}, row: ours_10}\n"
    text = text.replace("      - {label: not ours", f"{more}      - {{label: not ours")
    (tmp_path / "paper_results.yaml").write_text(text.partition("  - id: data")[0])
    paper = load_paper_results(tmp_path / "paper_results.yaml")
    for row in ("plain", "part", "ours", "ours_10"):
        write_run(tmp_path, row, 0, 90.0, {"config": {"data": {"image_size": 24}}})
    (bars, *_) = draw_figures(paper, build(paper, tmp_path), load_results(tmp_path, "demo"), tmp_path / "figures")
    texts = texts_of(bars.path)
    assert {"measured here (small, 24 px)", "paper (CIFAR-100)"} < set(texts)
    assert {"with A, half of OURS", "with A, OURS", "own"} < set(texts)
    assert not {"with A", "nobody", "not ours", "plain"} & set(texts)
    lines = [{"label": "x", "row": row} for row in ("ours", "ours_10", "plain")]
    assert told_apart(paper, lines) == ["x, OURS, ours", "x, OURS, ours_10", "x, plain model"]


def test_figures_without_data_are_left_out(paper: PaperResults, tmp_path: Path) -> None:
    folder = write_run(tmp_path, "plain", 0, 90.0)
    (folder / "curves.csv").write_text("epoch,train_loss\n0,1.5\n")
    assert draw_figures(paper, build(paper, tmp_path), load_results(tmp_path, "demo"), tmp_path / "figures") == []


def test_curves_of_a_row_are_those_that_are_kept(paper: PaperResults, full: Path, tmp_path: Path) -> None:
    """Rows that are restored from a publication of an older version have none."""
    next(full.glob("**/ours/seed-1/curves.csv")).write_text("epoch\n")
    pictures = draw_figures(paper, build(paper, full), load_results(full, "demo"), tmp_path / "figures")
    training = next(picture for picture in pictures if picture.path.stem == "learning-curves")
    assert "OURS: the 2 of 3 seeds whose curves are kept." in training.caption
    assert "plain model" not in training.caption
    assert "OURS: " in training.alt


class Page(HTMLParser):
    """Collects the tags, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_complete_and_self_contained(paper: PaperResults, full: Path, tmp_path: Path) -> None:
    rows = load_results(full, "demo")
    table = build(paper, full)
    pictures = draw_figures(paper, table, rows, tmp_path / "figures")
    write_report(table, rows, pictures, tmp_path / "new" / "report.html")
    page = Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))

    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "b"}  # <b> stands in the name of the machine
        for name in ("src", "srcset", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [picture.alt for picture in pictures]
    assert "url(" not in page.text
    assert "@import" not in page.text

    text = " ".join(page.text.split())
    assert "A synthetic <paper>" in text
    assert "<b>chip</b> & co" in text
    assert "OURS is 4.0\N{NBSP}\N{PLUS-MINUS SIGN}\N{NBSP}0.8 points above plain model (paper: +2.3)" in page.text
    for expected in (scope(table), table["summary"], "demo train --row ours_10 --set seed=0 > '<out>'", "0123456789"):
        assert expected in text
    for run in (run for same_row in rows.values() for run in same_row):
        assert run.result.fingerprint in text
    assert "sha256 3f3f3f3f3f3f, top-1 99.0 %" in text


def test_page_that_cannot_be_written(paper: PaperResults, full: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="choose another folder"):
        write_report(build(paper, full), load_results(full, "demo"), [], tmp_path / "file" / "report.html")
