"""A sixth paper, outside of the checkout, through DVC from the first stage to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance import forked
from core.tests.toy_paper import environment, write_toy_paper

RESULTS = """
paper: toypaper
title: Toys
citation: nobody
scale: imagenet
setting: none
methods: {plain: plain model, tuned: tuned model, warm: warm model}
curves: {Learning curves: [plain]}
tables:
  - id: table1
    title: "Table 1: toys"
    caption: none
    columns: {top1: Top-1}
    rows:
      - {label: plain, cells: {top1: 70.0}, row: plain}
      - {label: tuned, cells: {top1: 71.0}, row: tuned}
    comparisons: [{row: tuned, to: plain, headline: true}]
"""
PARAMS = "scale: digits\nseeds: [0]\npreset: null\nset: []\ngroups: [core]\nrows: [plain, tuned]\nprocesses: 1\n"

pytestmark = pytest.mark.slow


class Place:
    """A folder with a graph of its own, in which the toy paper is installed."""

    def __init__(self, folder):
        toy = write_toy_paper(folder / "toy")
        modules = {"toypaper": "toypaper.cli", "vitutor": "vitutor_core.cli.main", "dvc": "dvc.cli"}
        tools = forked.commands(folder / "bin", modules, imports=forked.DVC)
        (toy / "toypaper" / "paper_results.yaml").write_text(RESULTS)
        (toy / "toypaper-0.1.dist-info").mkdir()
        (toy / "toypaper-0.1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: toypaper\nVersion: 0.1\n"
        )
        entry = "[vitutor.papers]\ntoypaper = toypaper.cli:PAPER\n"
        (toy / "toypaper-0.1.dist-info" / "entry_points.txt").write_text(entry)
        self.recipe = toy / "toypaper" / "recipes" / "digits.yaml"
        self.folder = folder / "graph"
        self.folder.mkdir()
        (self.folder / "params.yaml").write_text(PARAMS)
        path = os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environment = environment(toy) | {"PATH": path}
        self.run("dvc", "init", "--no-scm", "-q")
        self.run("vitutor", "graph")
        # Sources lie elsewhere: as in the scales' folders, the plan is then made each time.
        graph = self.folder / "dvc.yaml"
        lines = [line for line in graph.read_text().splitlines() if "deps: [core/src" not in line]
        graph.write_text(
            "\n".join(lines).replace("cmd: ${in} vitutor plan", "cmd: vitutor plan\n    always_changed: true")
        )

    def run(self, *command):
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self):
        """Run the report's stages, and return those of rows and below that ran."""
        lines = self.run("dvc", "repro", "report@toypaper").splitlines()
        ran = [line.split("'")[1] for line in lines if line.startswith("Running stage")]
        return [stage for stage in ran if stage != "plan"]

    def weights(self, row):
        runs = self.folder / "results" / "runs" / "toypaper" / row
        return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("seed-*/student.safetensors")}


def test_from_the_data_to_the_report_and_only_what_changed_again(tmp_path):
    place = Place(tmp_path)
    ran = place.repro()
    assert {"data@digits", "toypaper@plain", "toypaper@tuned", "toypaper_evaluate@tuned", "report@toypaper"} <= set(ran)
    assert ran.index("toypaper@warm") < ran.index("toypaper@tuned")  # which starts from its student
    results = place.folder / "results"
    assert (results / "reports" / "toypaper" / "report.html").exists()
    assert [path.name for path in (results / "runs" / "toypaper" / "long").iterdir()] == ["not-run.txt"]
    table = json.loads((results / "tables" / "toypaper.json").read_text())
    assert [line["ours"]["n"] for line in table["tables"][0]["lines"]] == [1, 1]
    assert place.repro() == []

    first = place.weights("plain")
    params = place.folder / "params.yaml"
    params.write_text(PARAMS.replace("[0]", "[0, 1]"))
    ran = place.repro()
    assert {"toypaper@plain", "toypaper_evaluate@plain", "table@toypaper", "report@toypaper"} <= set(ran)
    assert place.weights("plain").keys() == {"seed-0", "seed-1"}
    assert place.weights("plain")["seed-0"] == first["seed-0"]

    before = place.weights("plain")
    recipe = place.recipe.read_text()
    place.recipe.write_text(recipe.replace("tuned: {", "tuned: {optim.lr: 2e-2, "))
    assert place.repro() == ["toypaper@tuned", "toypaper_evaluate@tuned", "table@toypaper", "report@toypaper"]
    assert place.weights("plain") == before
    shown = place.run("dvc", "metrics", "show")
    assert "results/metrics/toypaper/plain.json" in shown.replace("\\", "/")
    assert "top1" in shown

    # One seed less: nothing is trained, and the table is of the other alone.
    params.write_text(PARAMS)
    place.repro()
    assert place.weights("plain").keys() == {"seed-0", "seed-1"}
    table = json.loads((results / "tables" / "toypaper.json").read_text())
    assert [line["ours"]["n"] for line in table["tables"][0]["lines"]] == [1, 1]
