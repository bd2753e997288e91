from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from core.tests.report_samples import PAPER, write_run
from vitutor_core.errors import DataError
from vitutor_core.report import gallery
from vitutor_core.report.gallery import gallery_figure
from vitutor_core.report.groups import groups_figure
from vitutor_core.report.paper import PaperResults, load_paper_results
from vitutor_core.report.render import scope
from vitutor_core.report.results import load_results
from vitutor_core.report.table import build_table


@pytest.fixture
def paper(tmp_path: Path) -> PaperResults:
    path = tmp_path / "paper_results.yaml"
    path.write_text(
        PAPER.replace("curves: [plain, ours]", "curves: [plain, ours]\ngalleries: {made/one: One, made/two: Two}")
    )
    return load_paper_results(path)


def add_images(folder: Path, classes: int, images: int) -> None:
    for label in range(classes):
        for number in range(images):
            path = folder / "train" / f"{label:02d}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (10 * label, 20 * number, 0)).save(path)


def test_a_sheet_has_a_row_per_class_and_only_the_first_images(tmp_path: Path) -> None:
    add_images(tmp_path, classes=3, images=10)
    (tmp_path / "train" / "02" / "9.png").unlink()
    sheet = gallery._sheet(sorted((tmp_path / "train").iterdir()))
    assert sheet.shape == (15, 40, 3)
    assert (sheet[4::5] == 128).all()
    assert (sheet[:, 4::5] == 128).all()
    for label in range(3):
        for number in range(8):
            assert sheet[5 * label, 5 * number].tolist() == [10 * label, 20 * number, 0]
    for number in range(2, 10):
        (tmp_path / "train" / "01" / f"{number}.png").unlink()
    assert (gallery._sheet([tmp_path / "train" / "01"])[:4, 10:14] == 255).all()


def test_the_figure_shows_the_sets_that_are_there(paper: PaperResults, tmp_path: Path) -> None:
    assert gallery_figure(paper, tmp_path / "results", tmp_path) is None
    add_images(tmp_path / "results" / "made" / "two", classes=12, images=2)
    picture = gallery_figure(paper, tmp_path / "results", tmp_path)
    assert picture is not None
    assert "a row per class: Two." in picture.alt
    for path in (picture.light, picture.dark):
        with Image.open(path) as image:
            assert image.width > 1000
    add_images(tmp_path / "results" / "made" / "one", classes=2, images=2)
    both = gallery_figure(paper, tmp_path / "results", tmp_path)
    assert both is not None
    assert "One, Two" in both.alt


MEASURED = """
  - id: diversity
    title: Table D
    caption: what no training gave
    metric: distance
    optional: true
    columns: {distance: Distance, extra: Extra}
    measured: [distance, extra]
    rows: [{label: set, cells: {distance: 0.5, extra: 0.7}, row: {distance: part, extra: "part:extra"}}]
"""


def test_groups_of_points(tmp_path: Path) -> None:
    text = PAPER.replace("    figure: fraction\n", "    figure: groups\n")
    (tmp_path / "paper_results.yaml").write_text(text)
    paper = load_paper_results(tmp_path / "paper_results.yaml")
    write_run(tmp_path, "ours", 0, 95.0)

    def part() -> dict[str, Any]:
        table = build_table(paper, load_results(tmp_path, "demo"))
        found: dict[str, Any] = next(part for part in table["tables"] if part["id"] == "data")
        return found

    assert groups_figure(paper, part(), tmp_path) is None  # one point
    for seed, value in enumerate((80.0, 82.0)):
        write_run(tmp_path, "plain_10", seed, value)
    picture = groups_figure(paper, part(), tmp_path)
    assert picture is not None
    assert "10 %, plain model: 81.0 +- 1.4, paper 40.0; 100 %, OURS: 95.0, paper 72.3." in picture.alt
    assert picture.light.name == "groups-data.png"
    with Image.open(picture.dark) as image:
        assert image.width > 1000


def test_figures_without_training_and_optional_metrics(tmp_path: Path) -> None:
    text = PAPER.replace(", row: part}", "}").replace(", {row: part, to: plain}", "")
    (tmp_path / "optional.yaml").write_text(text + MEASURED)
    write_run(tmp_path, "plain", 0, 90.0)
    untrained = {"metrics": {"distance": 0.4}, "epochs": 0, "updates": 0}
    write_run(tmp_path, "part", 0, 0.0, untrained)
    rows = load_results(tmp_path, "demo")
    table = build_table(load_paper_results(tmp_path / "optional.yaml"), rows)
    distance, extra = next(part for part in table["tables"] if part["id"] == "diversity")["lines"]
    assert distance["ours"]["mean"] == 0.4
    assert extra["ours"] is None
    assert scope(table).endswith("; 56 updates per run.")
    (tmp_path / "required.yaml").write_text(text + MEASURED.replace("    optional: true\n", ""))
    with pytest.raises(DataError, match="no metric 'extra'"):
        build_table(load_paper_results(tmp_path / "required.yaml"), rows)
