"""Runs the notebooks of ``docs`` and keeps what they print and draw: ``python -m website.notebooks``."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path, folder: Path, *programs: Path, changes: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Run a notebook with ``folder`` as its working directory and return it with its outputs.

    Its commands are found in the folders ``programs``, then in the environment that this runs in; ``changes`` are
    replaced in its cells. What goes to stderr is left out: progress, and remarks on this machine. Raises nbclient's
    ``CellExecutionError``.
    """
    book = nbformat.read(path, as_version=4)
    for cell, (old, new) in itertools.product(book.cells, changes.items()):
        cell.source = cell.source.replace(old, new)
    folders = [*map(str, programs), str(Path(sys.executable).parent)]  # also where it is not activated
    environment = os.environ | {"PATH": os.pathsep.join([*folders, os.environ["PATH"]])}
    client = NotebookClient(book, timeout=900, coalesce_streams=True, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    for cell in book.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return book


if __name__ == "__main__":
    for notebook in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as scratch:
            nbformat.write(execute(notebook, Path(scratch)), notebook)
