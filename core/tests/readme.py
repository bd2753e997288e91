"""Run the examples of a README: its Python blocks, in a process-like namespace of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def python_blocks(readme: Path) -> list[str]:
    """Return the Python code blocks of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.S)


def run_block(code: str, **given: Any) -> dict[str, Any]:
    """Run one block with the names that it takes for granted; return its names."""
    names = dict(given)
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # our own documentation
    return names
