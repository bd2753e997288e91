"""Every notebook runs as it stands, and its outputs are those of a whole run."""

from __future__ import annotations

import json

import pytest

from website.notebooks import NOTEBOOKS, execute


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(path, tmp_path):
    book = execute(path, tmp_path)
    kept = json.loads(path.read_text())
    for cell, before in zip(book.cells, kept["cells"], strict=True):
        kinds = [[output["output_type"] for output in each.get("outputs", [])] for each in (cell, before)]
        assert kinds[0] == kinds[1], "run `python -m website.notebooks` after a change"


def test_outputs_are_small_and_name_no_folder_of_the_machine_that_made_them():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        text = path.read_text()
        assert len(text) < 100_000
        assert '"/' not in text
        assert "site-packages" not in text
