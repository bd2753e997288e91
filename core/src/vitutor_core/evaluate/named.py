"""Images without labels that a user names: files, folders and patterns."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import NoReturn

from vitutor_core.data.sources.images import is_image
from vitutor_core.errors import ConfigError, DataError


def named_images(names: Iterable[str]) -> list[Path]:
    """Return the files that are named, each once, in the order of ``names``; those of a folder or pattern are sorted.

    Of a folder these are the images in it and below; hidden files are passed over, and others with a warning. A name
    that is neither file nor folder is a pattern, in which ``**`` stands for any folders.

    Raises `ConfigError` for a name that leads to no file.
    """
    found: dict[Path, None] = {}
    for name in names:
        matches = [name] if os.path.lexists(name) else sorted(glob(name, recursive=True))  # noqa: PTH207  # absolute ones, too
        paths = [Path(match) for match in matches]
        files = [file for path in paths for file in (_images_below(path) if path.is_dir() else [path])]
        if not files:
            what = "no image is in it or below" if paths else "no such file or folder, and no file matches it"
            raise ConfigError(f"{name}: {what}")
        found |= dict.fromkeys(files)
    return list(found)


def _images_below(folder: Path) -> list[Path]:
    """Return the images of a folder tree, sorted; links are followed, each real folder once."""
    images: list[Path] = []
    others = 0
    seen = set()
    for parent, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [Path(parent, name) for name in files if not name.startswith(".")]
        own = [path for path in visible if path.is_file() and is_image(path)]
        others += len(visible) - len(own)
        images += own
    if others:
        warnings.warn(f"{folder}: files passed over, which are not images: {others}", stacklevel=2)
    return sorted(images)


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: {error.strerror}; make the folder readable, or leave it out")
