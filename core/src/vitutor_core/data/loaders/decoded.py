"""Decoded images on disk, mapped into memory by every later run on them: a start then decodes nothing.

A file holds the pixels of one resident loader and their SHA-256, is named by all that decides them, and may be deleted
at any time. Of a mapped file all processes of a machine share the pages.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import features

from vitutor_core.data.augment import resample
from vitutor_core.data.sources import images
from vitutor_core.data.sources.locate import user_cache
from vitutor_core.errors import ResourceError
from vitutor_core.files import atomic, file_sha256

_WORTH = 2**24
"""Bytes of pixels below which decoding takes a fraction of a second."""
_LIBRARIES = ("jpg", "libjpeg_turbo", "libtiff", "webp", "zlib")
"""Of Pillow; ``jpg`` is the version of libjpeg's interface alone, which all of libjpeg-turbo share."""
_DIGEST = hashlib.sha256().digest_size


def kept(
    facts: Callable[[], Sequence[Any]], shape: tuple[int, ...], gigabytes: float, make: Callable[[], NDArray[np.uint8]]
) -> NDArray[np.uint8]:
    """Return the pixels that ``make`` decodes to ``shape``, from the user's cache where an earlier run left them.

    ``facts`` returns all that decides them, as JSON, but for the code that decodes and its libraries. What was not used
    for longest is deleted where the cache would hold more than ``gigabytes``. Few images, and those that do not fit,
    are decoded each time. A cache that cannot be written is a warning.
    """
    size = math.prod(shape)
    if not _WORTH <= size <= gigabytes * 1e9:
        return make()
    key = hashlib.sha256(json.dumps([facts(), shape, _decoder()], sort_keys=True).encode()).digest()
    found = _read(key, size)
    if found is not None:
        return found.reshape(shape)
    pixels = make()
    try:
        _write(key, pixels, gigabytes * 1e9)
    except (ResourceError, OSError) as error:
        warnings.warn(
            f"decoded images are not kept: {error}; VITUTOR_CACHE names another folder, data.decoded_gb=0 keeps none",
            stacklevel=2,
        )
    return pixels


@cache
def _decoder() -> list[str]:
    """Return what reads and resizes images: our code, Pillow, and the libraries that it was built with."""
    code = [file_sha256(Path(str(module.__file__))) for module in (images, resample)]
    return [*code, PIL.__version__, *(str(features.version(name)) for name in _LIBRARIES)]


def _path(key: bytes) -> Path:
    return user_cache() / "decoded" / f"{key.hex()[:32]}.pixels"


def _read(key: bytes, size: int) -> NDArray[np.uint8] | None:
    """Map a file, and delete it where it is not as it was written. Pages that are written to become a process's own."""
    try:
        path = _path(key)
        if path.stat().st_size == size + _DIGEST:
            content = np.memmap(path, dtype=np.uint8, mode="c")
            if content[size:].tobytes() == _digest(key, content[:size]):
                with suppress(OSError):  # in a folder that is read-only for this user
                    path.touch()
                return content[:size]
        path.unlink(missing_ok=True)
    except (ResourceError, OSError):
        pass
    return None


def _write(key: bytes, pixels: NDArray[np.uint8], limit: float) -> None:
    path = _path(key)
    size = pixels.nbytes + _DIGEST
    path.parent.mkdir(parents=True, exist_ok=True)
    others = []
    for file in path.parent.glob("*.pixels"):
        with suppress(FileNotFoundError):  # deleted by another process, here and below
            found = file.stat()
            others.append((found.st_mtime, found.st_size, file))
    held = sum(bytes_of for _, bytes_of, _ in others)
    for _, bytes_of, file in sorted(others):
        if held + size <= limit:
            break
        held -= bytes_of
        file.unlink(missing_ok=True)
    if shutil.disk_usage(path.parent).free < 2 * size:
        raise ResourceError(f"{path.parent}: less than {2 * size / 2**30:.1f} GiB are free")
    with atomic(path, shared=True) as partial, partial.open("wb") as whole:
        whole.write(pixels.data)
        whole.write(_digest(key, pixels))


def _digest(key: bytes, pixels: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(pixels.data)
    return digest.digest()
