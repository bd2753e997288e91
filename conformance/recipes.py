"""What the recipes, tables and lines of every paper package must be, before anything is trained."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import torch

from vitutor_core.compare.contest import Contest
from vitutor_core.compare.lines import read_lines
from vitutor_core.graph.stages import read_graph
from vitutor_core.models.weights import create_model
from vitutor_core.paper import load
from vitutor_core.recipe import SHIFTED_SETS, read_recipe, recipe_path, scales_of
from vitutor_core.report.paper import load_paper_results, split_row
from vitutor_core.schema import ModelConfig


class RecipeConformance:
    package: ClassVar[str]
    beside_the_tables: ClassVar[frozenset[str]] = frozenset()
    """Rows for which the paper has no number, and which nothing else needs."""

    @classmethod
    def paper(cls) -> Any:
        return importlib.import_module(f"{cls.package}.cli").PAPER

    @classmethod
    def scales(cls) -> tuple[str, ...]:
        return scales_of(cls.package)

    def test_every_row_of_every_scale_is_valid_and_no_two_are_the_same(self) -> None:
        for scale in self.scales():
            recipe = read_recipe(recipe_path(self.package, scale))
            for preset in (None, *recipe.presets):
                configs = [self.paper().resolve(scale, None, row, (), preset=preset) for row in recipe.rows]
                if preset is None:
                    # Where generated images lie is no setting; which they are is.
                    assert len({(config.fingerprint(), config.data.train_from) for config in configs}) == len(configs)

    def test_every_student_can_be_built(self) -> None:
        """Also those of the scales that no test trains; the weights that they start from are left out."""
        load(self.paper().method)  # registers the paper's models with timm
        found = set()
        for scale in self.scales():
            for row in read_recipe(recipe_path(self.package, scale)).rows:
                config = self.paper().resolve(scale, None, row, ())
                student = config.student.changed(["pretrained=false", "start_row=null"])
                found.add((student.model_dump_json(), config.data.image_size))
        for student, image_size in found:
            with torch.device("meta"):
                create_model(
                    ModelConfig.model_validate_json(student), num_classes=10, image_size=image_size, channels=3
                )

    @property
    def compared(self) -> set[str]:
        """Rows of `vitutor compare`."""
        return {line.row for line in read_lines(self.package).values() if line.row is not None}

    def test_every_row_of_the_tables_can_be_made_and_every_row_is_for_something(self) -> None:
        paper = self.paper()
        graphs = [read_graph(scale, papers={self.package: paper}).papers[self.package] for scale in self.scales()]
        rows, needed = {row for graph in graphs for row in graph.configs}, self.compared
        for graph in graphs:
            needed |= {row for needs in graph.needs.values() for row in needs.rows}
            needed |= {row for stage in graph.stages for row in stage.rows}
        outs = [out for graph in graphs for stage in graph.stages for out in stage.outs]
        measured = {out.rpartition("/")[2] for out in outs if out.startswith("evaluation/")}
        printed = load_paper_results(Path(str(files(self.package))) / "paper_results.yaml")
        named = {split_row(row)[0] for table in printed.tables for row in table.reproduced()}
        assert named <= rows | measured
        assert rows - named - needed == self.beside_the_tables

    def test_what_tables_print_of_other_images_is_measured(self) -> None:
        printed = load_paper_results(Path(str(files(self.package))) / "paper_results.yaml")
        cells = {split_row(name) for table in printed.tables for name in table.reproduced()}
        wanted = {(row, (metric or "").rpartition("_")[2]) for row, metric in cells}
        shifts = [read_recipe(recipe_path(self.package, scale)).robustness for scale in self.scales()]
        measured = {(row, name) for found in shifts for row in found.rows for name in found.sets}
        assert {cell for cell in wanted if cell[1] in SHIFTED_SETS} <= measured
        assert {row for row, _ in measured} <= {row for row, _ in cells}

    def test_compare_finds_its_rows(self) -> None:
        (entry,) = entry_points(group="vitutor.papers", name=self.package)
        assert entry.load() == self.paper()
        for scale in self.scales():
            contest = Contest(scale, {self.package: self.paper()})
            for name in read_lines(self.package):
                entry = contest.entry(name)
                config = entry.row.config(0)
                same = (config.student.name, config.student.kwargs) == (
                    contest.budget.student.name,
                    contest.budget.student.kwargs,
                )
                assert same == entry.is_common, (scale, name)
                assert config.cache.folder is None  # a line's minutes are its own
                assert (config.optim, config.train) == (contest.budget.optim, contest.budget.train)
                for row, _ in contest.before(entry.row):
                    assert row.config(0).data == contest.budget.data
