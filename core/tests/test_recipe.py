"""The recipe files of all packages that are installed: no value is written twice, and groups are what they say."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from vitutor_core.cli.options import SCALES
from vitutor_core.config import leaves, parse_yaml
from vitutor_core.models.named import named_model
from vitutor_core.paper import GROUP, teacher_recipe
from vitutor_core.recipe import CORE_GROUP, read_recipe, recipe_path, scales_of

PAPERS = [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)]
FOLDERS = [Path(str(files(package))) / "recipes" for package in ("vitutor_core", *(paper.package for paper in PAPERS))]
FILES = {
    f"{folder.parent.name}/{path.relative_to(folder)}": path for folder in FOLDERS for path in folder.rglob("*.yaml")
}


def flat(values: Any, name: str = "") -> Iterator[str]:
    """The dotted names of all values; those of a list are numbered."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from flat(value, f"{name}.{key}")
    elif isinstance(values, list):
        for place, value in enumerate(values):
            yield from flat(value, f"{name}.{place}")
    else:
        yield name


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_value_is_written_both_nested_and_dotted(name):
    """In one mapping the order of the two would decide, and tools that flatten the file refuse it."""
    names = sorted(flat(parse_yaml(FILES[name].read_text(encoding="utf-8"), where=name)))
    assert sorted(set(names)) == names
    inside = [leaf for leaf in names for other in names if leaf.startswith(f"{other}.")]
    assert not inside


@pytest.mark.parametrize(
    ("text", "times"),
    [("train: {epochs: 5}\ntrain.epochs: 9", 2), ("train: {batch_size: 5}\ntrain.epochs: 9", 1)],
)
def test_flat_names_of_nested_and_dotted_values(text, times):
    assert list(flat(parse_yaml(text, where="x"))).count(".train.epochs") == times


BY_CHOICE = {"ablation", "generated", "detection", "seed"}
"""Groups of rows that lack nothing but the time of whoever runs them, or a task of their own."""


def expected_group(config):
    """The group of a row that needs images or weights that a user may not have; those of all others are `core`."""
    source, student = config.data.source, config.student
    if student.pretrained and named_model(student.name).classes is None:
        return "published_weights"
    if source.startswith("domainnet:"):
        return "domainnet"
    if source.startswith("folder:") and source != "folder:imagenet":
        return {"folder:stanford_cars": "cars", "folder:inat18": "inat"}[source]
    return CORE_GROUP


@pytest.mark.parametrize(
    ("paper", "scale"),
    [
        pytest.param(paper, scale, id=f"{paper.package}-{scale}")
        for paper in PAPERS
        for scale in scales_of(paper.package)
    ],
)
def test_groups_name_the_rows_that_need_more_than_others(paper, scale):
    recipe = read_recipe(recipe_path(paper.package, scale))
    for row in recipe.rows:
        config = paper.resolve(scale, None, row, ())
        own = recipe.group_of(row)
        assert (CORE_GROUP if own in BY_CHOICE else own) == expected_group(config), row
        # What a row starts from and what teaches it.
        for path, _, name in leaves(config):
            kind = path.rpartition(".")[2]
            if name is not None and kind in {"start_row", "row"}:
                assert recipe.group_of(name) in {CORE_GROUP, recipe.group_of(row)}, row
            elif name is not None and kind == "recipe":
                teachers = read_recipe(teacher_recipe(scale, name))
                assert name in teachers.rows, row
                assert teachers.group_of(name) == CORE_GROUP, row


@pytest.mark.parametrize("scale", SCALES)
def test_a_teacher_has_one_recipe(scale):
    paths = [FILES[name] for name in FILES if name in {f"vitutor_core/{scale}.yaml"} or f"/teachers/{scale}." in name]
    names = [row for path in paths for row in read_recipe(path).rows]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", sorted(name for name in FILES if "/budget/" not in name))
def test_every_pattern_fits_a_row(name):
    recipe = read_recipe(FILES[name])
    shifted = (parse_yaml(FILES[name].read_text(encoding="utf-8"), where=name).get("robustness") or {}).get("rows", ())
    for pattern in (*shifted, *(pattern for patterns in recipe.groups.values() for pattern in patterns)):
        assert any(fnmatchcase(row, pattern) for row in recipe.rows), pattern
