"""How every script here reports; times are taken as `vitutor bench` takes them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vitutor_core.provenance import here


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures with their provenance, and write them where --out says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    write(name, figures, parser.parse_args().out)


def write(name: str, figures: dict[str, Any], out: Path | None) -> None:
    """Print the figures with their provenance, and write them to ``out``."""
    result = {"benchmark": name, **figures, **here()}
    text = json.dumps(result, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
