"""The example of a paper's README: a step in a training loop of one's own, run as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch


def run_example(paper: str) -> dict[str, Any]:
    """Run the first Python block of ``paper/README.md`` on two images; return its names."""
    text = (Path(__file__).parents[1] / paper / "README.md").read_text()
    block = re.search(r"```python\n(.*?)```", text, flags=re.S)
    assert block is not None
    torch.manual_seed(0)
    names: dict[str, Any] = {"loader": [(torch.randn(2, 3, 224, 224), torch.tensor([1, 2]))]}
    exec(compile(block[1], f"{paper}/README.md", "exec"), names)  # noqa: S102  # our own page, as a reader runs it
    return names


def trained(model: Any) -> bool:
    """Return whether every parameter that is trained has a gradient, and whether all gradients are finite."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    return all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
