"""Every notebook runs as it stands, and its outputs are those of a whole run."""

from __future__ import annotations

import json

import pytest

from conformance import forked
from website.notebooks import NOTEBOOKS, execute

SHORTER = {"--scale own": "--scale own --set train.epochs=6", "train.epochs=6 --out": "train.epochs=2 --out"}
"""How long is trained changes numbers alone. What own images take by themselves, README's commands do in their test."""


@pytest.fixture
def _forked_kernel(tmp_path, monkeypatch):
    """Let Jupyter find a kernel that is forked."""
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [forked.python(), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec.write_text(json.dumps({"argv": command, "display_name": "Python", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))


@pytest.mark.slow
@pytest.mark.usefixtures("_forked_kernel")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_as_it_stands(path, tmp_path):
    modules = {"vitutor": "vitutor_core.cli.main", "drloc": "drloc.cli", "dearkd": "dearkd.cli"}
    (tmp_path / "notebook").mkdir()
    book = execute(path, tmp_path / "notebook", forked.commands(tmp_path / "bin", modules), changes=SHORTER)
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
