"""params.yaml: what a person sets of a graph."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Self, get_args, get_origin

from pydantic import field_validator
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from vitutor_core.config import Config, fingerprinted, nearest, parse_yaml, read_value, runtime
from vitutor_core.errors import ConfigError
from vitutor_core.files import write_text
from vitutor_core.recipe import CORE_GROUP
from vitutor_core.schema import LARGEST_SEED, Seed


class Params(Config):
    """What is run of a scale's graph, and how."""

    scale: str = fingerprinted("digits", help="Which recipes: data and model sizes")
    seeds: tuple[Seed, ...] = fingerprinted((0, 1, 2), help="One run of each row per seed", min_length=1)
    preset: str | None = fingerprinted(None, help="A reading of the recipes that have it, such as official")
    set: tuple[str, ...] = fingerprinted((), help="More settings of every row, e.g. train.accumulate=4")
    groups: tuple[str, ...] = fingerprinted((CORE_GROUP,), help="Groups of rows that are run; see `vitutor ready`")
    rows: tuple[str, ...] = fingerprinted(
        (), help="Only these rows (or PAPER@ROW), and what they need; none: all of the groups"
    )
    processes: int = runtime(1, help="GPUs, or processes on a CPU, per run", ge=1, le=1024)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a params.yaml; raises `ConfigError`."""
        return cls.from_mapping(_read(path)[1], where=str(path))

    @field_validator("seeds")
    @classmethod
    def _are_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        return check_seeds(seeds)


def check_seeds(seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Return ``seeds``; raises `ValueError` unless each is named once, from 0 to `LARGEST_SEED`."""
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > LARGEST_SEED:
        raise ValueError(f"name each seed once, from 0 to {LARGEST_SEED}")
    return seeds


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a params.yaml and its fields, as yet unchecked; raises `ConfigError`."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: {error.strerror}") from None
    values = parse_yaml(text, where=str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: write fields such as 'scale: digits'")
    return text, values


def change_params(path: Path, changes: tuple[str, ...]) -> list[str]:
    """Set fields of a params.yaml, whose comments stay, and return what is said of it; raises `ConfigError`.

    Lists may be written with commas or blanks between their entries, and an empty text is none.
    """
    editor = YAML()
    editor.width = 120
    before, _ = _read(path)
    values = editor.load(before)
    for change in changes:
        name, _, text = change.partition("=")
        if name not in Params.model_fields:
            raise ConfigError(f"{path}: no field '{name}'{nearest(name, Params.model_fields)}")
        kind = Params.model_fields[name].annotation
        if get_origin(kind) is tuple:
            parts = text.replace(",", " ").split()
            values[name] = CommentedSeq(read_value(part, get_args(kind)[0], where=name) for part in parts)
            values[name].fa.set_flow_style()
        else:
            values[name] = read_value(text, kind, where=name) if text else None
    written = io.StringIO()
    editor.dump(values, written)
    Params.from_mapping(parse_yaml(written.getvalue(), where=str(path)), where=str(path))
    if written.getvalue() != before:
        write_text(path, written.getvalue())
    return [f"{path}: {change}" for change in changes]
