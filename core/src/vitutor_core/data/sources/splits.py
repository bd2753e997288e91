"""The names that people give to their splits, and which of them is evaluated on."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from vitutor_core.config import nearest
from vitutor_core.errors import ConfigError, DataError
from vitutor_core.schema import DataConfig

TRAINING = ("train", "training")
EVALUATION = ("val", "valid", "validation", "dev", "eval", "test")
"""In order of preference: where there is another split beside test, the labels of test are often withheld."""
NAMES = (*TRAINING, *EVALUATION)


class Chosen(NamedTuple):
    """The names of two splits, as they are written; none is evaluated on where training images are held out."""

    train: str
    evaluation: str | None
    notes: tuple[str, ...]


def is_split(name: str) -> bool:
    """Return whether a split goes by this name; upper and lower case do not matter."""
    return name.casefold() in NAMES


def by_lower_case(names: Iterable[str], what: str) -> dict[str, str]:
    """Return names by themselves in lower case; raises `DataError`, with ``what`` they are, for two of one name."""
    found: dict[str, str] = {}
    for name in sorted(names):
        other = found.setdefault(name.casefold(), name)
        if other != name:
            raise DataError(f"{what} '{other}' and '{name}' differ only in case; rename or merge them")
    return found


def choose(names: Iterable[str], config: DataConfig, where: str) -> Chosen | None:
    """Choose among the names of splits that were found ``where``; None if one of the two is missing.

    Raises `ConfigError` if ``config.eval_split`` is not there, and `DataError` if two names are those of one split.
    """
    found = by_lower_case(names, f"{where}: splits")
    train = _first(found, TRAINING)
    if config.holdout is not None:
        return Chosen(train, None, ()) if train is not None else None
    candidates = [found[name] for name in EVALUATION if name in found]
    if config.eval_split is not None:
        evaluation = found.get(config.eval_split.casefold())
        if evaluation is None or evaluation == train:
            hint = nearest(config.eval_split, candidates)
            raise ConfigError(
                f"data.eval_split: {where} has no '{config.eval_split}' to evaluate on{hint}; "
                f"splits: {', '.join(candidates) or 'none'}"
            )
    else:
        evaluation = _first(found, EVALUATION)
    if train is None or evaluation is None:
        return None
    others = [name for name in candidates if name != evaluation]
    if config.eval_split is not None or not others:
        return Chosen(train, evaluation, ())
    note = f"{where}: evaluated on '{evaluation}'; there is '{others[0]}' too, which data.eval_split={others[0]} takes"
    return Chosen(train, evaluation, (note,))


def _first(found: dict[str, str], wanted: Collection[str]) -> str | None:
    return next((found[name] for name in wanted if name in found), None)
