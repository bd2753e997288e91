"""The recipe files of all packages that are installed: nothing is written twice."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from vitutor_core.cli.compare import GROUP
from vitutor_core.config import parse_yaml

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
