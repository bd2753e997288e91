"""Runs the notebooks of ``docs`` and keeps what they print and draw: ``python -m website.notebooks``."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))


def execute(path: Path, folder: Path) -> Any:
    """Run a notebook with ``folder`` as its working directory and return it with its outputs.

    What goes to stderr is left out: progress, and remarks on this machine. Raises nbclient's ``CellExecutionError``.
    """
    book = nbformat.read(path, as_version=4)
    # The commands of the environment that this runs in, also where it is not activated.
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
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
