"""A paper package made on the fly, so that the commands that papers share are tested without any paper."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLI = """
from vitutor_core.paper import Paper

PAPER = Paper(
    "toypaper",
    config="vitutor_core.schema:RunConfig",
    method="vitutor_core.train.supervised:Supervised",
    summary="A paper without a method of its own.",
)
main = PAPER.main
"""

RECIPE = """
base:
  data: {source: digits, image_size: 16, per_class: 10}
  student: {name: vit_tiny_patch16_224, kwargs: {patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}}
  optim: {lr: 1e-2, schedule_unit: update}
  train: {epochs: 2, batch_size: 20}
  runtime: {device: cpu, threads: 1, log_every_steps: 1}
rows:
  plain: {}
  long: {train.epochs: 1000, runtime.eval_every_epochs: 1000, runtime.checkpoint_every_epochs: 1000}
  diverging: {optim.lr: 1e+30}
  warm: {}
  tuned: {student.start_row: warm}
"""

LINES = """
other: {title: Another, row: plain}
warmed: {title: Warmed, row: tuned, adds: start}
wide: {title: Wide, row: plain, own: twice the width, changes: {plain: {student.kwargs.embed_dim: $student.wide}}}
"""

CODE = "from toypaper.cli import main; main()"


def environment(toy: Path) -> dict[str, str]:
    """The environment of a process that finds the package in ``toy``, and what this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join((str(toy), os.environ.get("PYTHONPATH", "")))}


def write_toy_paper(folder: Path) -> Path:
    """Write the package; ``folder`` is what goes on the path."""
    package = folder / "toypaper"
    (package / "recipes").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(CLI)
    (package / "recipes" / "digits.yaml").write_text(RECIPE)
    (package / "compare.yaml").write_text(LINES)
    return folder


@contextmanager
def paper_on_path(folder: Path) -> Iterator[Path]:
    """Write the package into ``folder`` and let this process import it; yield the folder."""
    write_toy_paper(folder)
    sys.path.insert(0, str(folder))
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        for name in ("toypaper", "toypaper.cli"):
            sys.modules.pop(name, None)
