"""The one place where images are decoded, and splits made of arrays or of image files."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from vitutor_core.data.sources.locate import several
from vitutor_core.data.types import Split
from vitutor_core.errors import DataError, are_files_exhausted
from vitutor_core.files import file_sha256

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow knows more, among them PostScript, which it hands to an outside interpreter."""


@cache
def _suffixes() -> frozenset[str]:
    Image.init()
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in _FORMATS)


def is_image(path: Path) -> bool:
    """Tell whether a file is an image that `read_image` takes: by its suffix, or if that is none of them, its header.

    So a damaged image is still one, by its suffix, and is not passed over.
    """
    if path.suffix.lower() in _suffixes():
        return True
    try:
        with Image.open(path, formats=_FORMATS):
            return True
    except Exception as error:  # decoders raise many unrelated types on other files
        if are_files_exhausted(error):
            raise
        return False


def read_image(data: bytes | Path, where: str) -> Image.Image:
    """Decode an image, given as bytes or as a file, to 8-bit RGB by the same rules everywhere.

    - JPEG, PNG, WebP, GIF, BMP, TIFF and PPM; the first frame of an animation; the EXIF orientation is applied.
    - Alpha, a transparent palette entry or colour is composited over white.
    - Grey, palette, 1-bit, CMYK, YCbCr, LAB and HSV are converted to RGB.
    - 16 bits are scaled to 8, ``round(v / 257)``; so is Pillow's 32-bit mode, in which it opens 16-bit PGM.
    - Refused: truncated or damaged files, floating-point pixels, 32-bit values above 65535, and images of more pixels
      than Pillow's limit against decompression bombs.

    ``info["mode"]`` of the result is the Pillow mode of the file; other metadata is dropped. Safe to call from threads.

    Raises `DataError`, naming ``where``.
    """
    # Libraries switch this on for the whole process; half an image would then be grey without a word.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=_FORMATS) as image:
            mode = image.mode
            _refuse_bomb(image)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except Exception as error:  # decoders raise many unrelated types on damaged bytes
        if are_files_exhausted(error):
            raise
        raise DataError(f"{where}: cannot read the image: {_reason(error)}; repair or remove it") from None
    rgb.info = {"mode": mode}
    return rgb


def _refuse_bomb(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow itself only warns between one and two times the limit.
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels, above Pillow's limit of {limit}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("pixel values outside 0 to 65535")
    grey = ((values + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(_FORMATS)}"  # Pillow's own text holds a memory address
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True, eq=False)
class _ArrayImages:
    pixels: NDArray[np.uint8]
    name: str

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")

    def where(self, index: int) -> str:
        return f"{self.name}, image {index}"


def array_split(pixels: NDArray[np.uint8], labels: NDArray[np.int64], name: str) -> Split:
    """Make a split of decoded images: ``pixels`` (N, H, W) grey or (N, H, W, 3) RGB, ``labels`` (N,)."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    digest.update(labels.astype("<i8").tobytes())
    images = _ArrayImages(pixels, name)
    return Split(labels, images.read, images.where, digest.hexdigest())


@dataclass(frozen=True, eq=False)
class _FileImages:
    root: Path
    # An array of bytes: reading a list of strings would copy its pages into every forked worker.
    files: NDArray[np.bytes_]

    def path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.files[index])

    def read(self, index: int) -> Image.Image:
        return read_image(self.path(index), self.where(index))

    def where(self, index: int) -> str:
        return str(self.path(index))

    def contents(self, indices: NDArray[np.int64]) -> str:
        digest = hashlib.sha256()
        with ThreadPoolExecutor() as pool:
            for found in pool.map(self._sha256, indices.tolist()):
                digest.update(found)
        return digest.hexdigest()

    def _sha256(self, index: int) -> bytes:
        try:
            return bytes.fromhex(file_sha256(self.path(index)))
        except OSError as error:
            if are_files_exhausted(error):
                raise
            raise DataError(f"{self.where(index)}: {error.strerror}; restore the file") from None


def file_split(root: Path, files: Sequence[str], labels: NDArray[np.int64]) -> Split:
    """Make a split of image files, given relative to ``root``; the hash covers their order, names, sizes and labels.

    Raises `DataError` if files are missing.
    """
    digest = hashlib.sha256()
    missing = []
    for file, label in zip(files, labels.tolist(), strict=True):
        try:
            size = (root / file).stat().st_size
        except OSError as error:
            missing.append(f"{root / file}: {error.strerror}; restore the file")
            continue
        digest.update(f"{Path(file).as_posix()}\0{size}\0{label}\n".encode(errors="surrogateescape"))
    if missing:
        raise several(missing)
    images = _FileImages(root, np.array([os.fsencode(file) for file in files], dtype=np.bytes_))
    return Split(labels, images.read, images.where, digest.hexdigest(), images.contents)
