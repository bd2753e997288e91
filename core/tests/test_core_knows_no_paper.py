"""What only one paper needs is data that its package gives; core's code and recipes name no paper."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CORE = Path(__file__).parents[1] / "src"
FILES = sorted(path for path in CORE.rglob("*") if path.suffix in {".py", ".yaml", ".html", ".css"})
NAMES = re.compile(r"dear_?kd|co-?_?advise|dr_?loc|bootstrapping|mae[-_ ]?lite|\bmae\b", re.IGNORECASE)


def documented(tree: ast.Module) -> Iterator[ast.Constant]:
    """The texts that stand alone: docstrings, also those of fields."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def named_papers(text: str, *, is_python: bool) -> list[str]:
    """The papers that a file names; in Python outside of comments and docstrings."""
    if not is_python:
        return NAMES.findall(text)
    tree = ast.parse(text)
    for constant in list(documented(tree)):
        constant.value = ""
    return NAMES.findall(ast.unparse(tree))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CORE).as_posix())
def test_no_file_names_a_paper(path):
    assert named_papers(path.read_text(encoding="utf-8"), is_python=path.suffix == ".py") == []


@pytest.mark.parametrize(
    ("text", "is_python"),
    [
        ("if config.method == 'dearkd':\n    pass", True),
        ("import drloc", True),
        ("def mae_lite_figure():\n    pass", True),
        ("help = 'as Bootstrapping ViTs released'", True),
        ("# Teachers (Co-advise, Fig. 4)\nbase: {}", False),
    ],
)
def test_the_search_finds(text, is_python):
    assert named_papers(text, is_python=is_python)


def test_the_search_reads_no_docstrings_and_has_files():
    assert not named_papers('"""DearKD, Fig. 4."""\n# DRLoc\nx: int = 1\n"""As MAE-Lite does."""', is_python=True)
    assert len(FILES) > 100
    assert {".py", ".yaml"} <= {path.suffix for path in FILES}
