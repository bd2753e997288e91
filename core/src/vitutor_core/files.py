"""How files and folders come into being, are replaced and are deleted. Imports nothing heavy.

Whatever is written here is there whole or not at all, also after ``kill -9``, a full disk or a power cut.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vitutor_core.errors import ConfigError, ResourceError

_PARTIAL, _OLD = ".vitutor.tmp", ".vitutor.tmp-old"
"""What a killed process may leave beside its target: only names that nobody else gives are ever deleted."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SECONDS_TO_WRITE = 3600.0
"""What has not grown for so long is written by nobody."""


def write_json(path: Path, value: Any) -> None:
    """Write JSON; see `atomic`."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file; see `atomic`."""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_csv(path: Path, lines: Iterable[Iterable[Any]]) -> None:
    """Write a table, line by line; see `atomic`."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


@contextlib.contextmanager
def atomic(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a path to write a file or to make a folder at, which replaces ``target`` when it is whole.

    It lies beside the target, is flushed to disk and then renamed. Where anything fails, the target stays as it was.
    With ``shared``, other processes may be writing the same target; the last one wins, and what killed ones have left
    beside it is deleted.

    Raises:
        ResourceError: it cannot be written.

    """
    target = target.resolve()  # a link stays, and what it leads to is replaced
    partial = target.with_name(f".{target.name}{_PARTIAL}{f'-{os.getpid()}' if shared else ''}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _delete(partial)
        if shared:
            _make_room_beside(partial)
        yield partial
        _flush_all(partial)
        if partial.is_dir():
            _set_aside(target)
        partial.replace(target)
        _flush(target.parent)
    except (Exception, KeyboardInterrupt) as error:  # Ctrl-C leaves nothing, either
        with contextlib.suppress(OSError):
            _delete(partial)
            if not target.exists():
                _old(target).rename(target)
        if isinstance(error, OSError):
            raise ResourceError(_not_written(target, error)) from None
        raise
    with contextlib.suppress(OSError):
        _delete(_old(target))


@contextlib.contextmanager
def replace_folder(target: Path, marker: str, *others: str) -> Iterator[Path]:
    """Yield a new folder to fill, which then replaces ``target``; see `check_replaceable` and `atomic`."""
    check_replaceable(target, marker, *others)
    with atomic(target) as partial:
        partial.mkdir()
        yield partial


def check_replaceable(target: Path, marker: str, *others: str) -> None:
    """Refuse to replace a folder that holds anything but our own results of one kind.

    Such a folder has a file that matches ``marker`` and, besides, none that matches neither it nor ``others``
    (patterns of paths below the folder). A folder without a file may be replaced as well.

    Raises:
        ConfigError: it holds something else, or is not a directory.

    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target.absolute()}: is a file; choose another folder")
    paths = sorted(path for path in target.rglob("*") if path.is_symlink() or not path.is_dir())
    files = [path.relative_to(target) for path in paths]
    foreign = [file for file in files if not any(_matches(file, pattern) for pattern in (marker, *others))]
    if files and not any(_matches(file, marker) for file in files):
        foreign = foreign or files
    if foreign:
        raise ConfigError(
            f"{target.absolute()}: holds something else than the results that would replace it ({foreign[0]}"
            f"{f' and {len(foreign) - 1} more files' if foreign[1:] else ''}); choose another folder, or empty it"
        )


def discard(path: Path) -> None:
    """Delete a file or folder of ours, if it is there, such that a kill leaves no half of it in its place."""
    with contextlib.suppress(OSError):  # what cannot be deleted stays
        _set_aside(path)
        _delete(_old(path))


def discard_partial(folder: Path, *, before: float = math.inf) -> None:
    """Delete what killed writers have left in a folder; beside living ones, what was last written ``before`` a time."""
    for path in folder.glob(f".*{_PARTIAL}*"):
        with contextlib.suppress(FileNotFoundError, PermissionError):  # its writer has finished; another user's
            if path.lstat().st_mtime < before:
                _delete(path)


def _make_room_beside(partial: Path) -> None:
    """Delete what killed writers have left beside ``partial`` long ago, by the clock of the file system."""
    with contextlib.suppress(OSError):  # another user's, which may stay
        partial.touch()
        now = partial.stat().st_mtime
        partial.unlink()
        discard_partial(partial.parent, before=now - _SECONDS_TO_WRITE)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; see `atomic`."""
    with atomic(target) as partial:
        shutil.copyfile(source, partial)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _set_aside(path: Path) -> None:
    _delete(_old(path))  # of a process that was killed here
    if path.exists():
        path.rename(_old(path))


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}{_OLD}")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _matches(file: Path, pattern: str) -> bool:
    wanted = pattern.split("/")
    return len(file.parts) == len(wanted) and all(map(fnmatchcase, file.parts, wanted))


def _flush_all(path: Path) -> None:
    """Flush a file, or a folder and all below it, to disk, with the modes that new files have."""
    if not path.is_dir():
        path.chmod(0o666 & ~_umask())  # safetensors leaves its files unreadable for the group
    else:
        for child in path.iterdir():
            _flush_all(child)
    _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    # Some file systems cannot sync folders; a file that cannot be synced is a failed save.
    tolerate = contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext()
    try:
        with tolerate:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_written(target: Path, error: OSError) -> str:
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    room = f"free some space, {shutil.disk_usage(folder).free:,} bytes are left" if error.errno in _FULL else ""
    return f"{target}: cannot write ({error.strerror or error}); {room or 'choose another folder'}"
