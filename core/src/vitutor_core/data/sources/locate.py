"""Where data lies on this machine, and what to say when it is not there."""

from __future__ import annotations

import os
from pathlib import Path

from vitutor_core.errors import DataError, ResourceError

ROOT_HINT = "(VITUTOR_DATA_ROOT names the folder of all data sets)"
"""Said where something was looked for in it alone."""


def data_root() -> Path:
    """Return the folder of all data sets: ``$VITUTOR_DATA_ROOT``, else ``data`` in the current folder."""
    return Path(os.environ.get("VITUTOR_DATA_ROOT") or "data").expanduser().absolute()


def user_cache() -> Path:
    """Return the folder of what is kept between runs: ``$VITUTOR_CACHE``, else ``vitutor`` in the user's cache.

    Raises `ResourceError` for a user without a home.
    """
    own = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vitutor"
    try:
        return Path(os.environ.get("VITUTOR_CACHE") or own).expanduser().absolute()
    except RuntimeError:
        raise ResourceError("there is no home folder for a cache; let VITUTOR_CACHE name a folder") from None


def locate(path: str) -> Path:
    """Resolve a path of a config: as it is, else under `data_root` if it exists there, else in the current folder.

    Raises `DataError` where the path begins with the home of a user who has none.
    """
    try:
        given = Path(path).expanduser()
    except RuntimeError:
        raise DataError(f"{path}: no home folder '{Path(path).parts[0]}'") from None
    under_root = data_root() / given
    return under_root if under_root.exists() else given.absolute()


def require_folder(folder: Path, holds: str) -> None:
    """Raise `DataError` unless ``folder`` is a folder; ``holds`` says what it should hold."""
    if not folder.exists():
        parent = next(above for above in folder.parents if above.is_dir())
        hint = f" {ROOT_HINT}" if folder.is_relative_to(data_root()) else ""
        raise DataError(f"{folder}: no such folder ({parent} holds {contents(parent)}); it should hold {holds}{hint}")
    if not folder.is_dir():
        raise DataError(f"{folder}: this is a file; name the folder that holds {holds}")


def contents(folder: Path) -> str:
    """List the first entries of a folder for a message; hidden ones are left out."""
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    return shorten(names) if names else "nothing"


def shorten(names: list[str], limit: int = 6) -> str:
    """Join names for a message; beyond ``limit`` they are only counted."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def several(problems: list[str], limit: int = 20) -> DataError:
    """Return the error of images that each have a problem; of many, the first ``limit`` are its notes, each a line."""
    if len(problems) == 1:
        return DataError(problems[0])
    lines, advice = without_advice(problems)
    error = DataError(f"{len(problems)} images cannot be read{advice}")
    for line in lines[:limit]:
        error.add_note(line)
    if len(lines) > limit:
        error.add_note(f"and {len(lines) - limit} more")
    return error


def without_advice(problems: list[str]) -> tuple[list[str], str]:
    """Take the advice, what follows the last semicolon, out of problems that share it; return it to be given once."""
    parts = [problem.rpartition("; ") for problem in problems]
    advice = {last for _, _, last in parts}
    if len(advice) > 1 or not all(first for first, _, _ in parts):
        return problems, ""
    return [first for first, _, _ in parts], f"; {'for each: ' if problems[1:] else ''}{advice.pop()}"


def listed(problems: list[str], limit: int) -> str:
    """Join problems, each of one image, for a message: their number, and the first ``limit`` of them."""
    if len(problems) == 1:
        return problems[0]
    rest = "" if len(problems) <= limit else f"; and {len(problems) - limit} more"
    return f"{len(problems)} images: " + "; ".join(problems[:limit]) + rest
