"""Every kind of image file becomes the RGB pixels that the documented rules say, or is refused by name."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vitutor_core.data.sources.images import read_image
from vitutor_core.errors import DataError


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(data: bytes) -> tuple[int, ...]:
    image = read_image(data, "test")
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def png_16_bit(color_type: int, *samples: int) -> bytes:
    """Write a one-pixel PNG of 16 bits per sample, which Pillow cannot write for colour."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, color_type, 0, 0, 0))
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "color", "format", "expected"),
    [
        ("RGB", (10, 20, 30), "PNG", (10, 20, 30)),
        ("L", 77, "PNG", (77, 77, 77)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("1", 0, "PNG", (0, 0, 0)),
        ("CMYK", (0, 255, 51, 0), "TIFF", (255, 0, 204)),
        ("RGBA", (100, 0, 200, 255), "PNG", (100, 0, 200)),
        ("RGBA", (100, 0, 200, 0), "PNG", (255, 255, 255)),
        # alpha 51 is 0.2: 0.2 * 100 + 0.8 * 255 = 224
        ("RGBA", (100, 0, 200, 51), "PNG", (224, 204, 244)),
        ("RGBA", (100, 0, 200, 51), "WEBP", (224, 204, 244)),
        ("LA", (100, 51), "PNG", (224, 224, 224)),
    ],
)
def test_8_bit_modes(mode: str, color: object, format: str, expected: tuple[int, ...]) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = encode(Image.new(mode, (3, 2), color), format, **options)
    assert pixel(data) == expected
    assert read_image(data, "test").size == (3, 2)
    assert read_image(data, "test").info == {"mode": mode}


def test_jpeg_of_four_inks() -> None:
    # 20 % black ink on white paper is 80 % grey, 204; JPEG may be off by one
    assert pixel(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 51)), "JPEG", quality=100)) == pytest.approx(
        (204,) * 3, abs=1
    )


def palette_image() -> Image.Image:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 0, 90, 0])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [(200, 10, 20), (0, 90, 0)]),
        ({"transparency": 1}, [(200, 10, 20), (255, 255, 255)]),
        ({"transparency": b"\x00\x33"}, [(255, 255, 255), (204, 222, 204)]),
    ],
)
def test_palettes(options: dict[str, object], expected: list[tuple[int, ...]]) -> None:
    image = read_image(encode(palette_image(), **options), "test")
    assert [image.getpixel((0, 0)), image.getpixel((1, 0))] == expected


def test_a_transparent_colour_becomes_white() -> None:
    assert pixel(encode(Image.new("RGB", (1, 1), (9, 8, 7)), transparency=(9, 8, 7))) == (255, 255, 255)
    assert pixel(encode(Image.new("L", (1, 1), 9), transparency=9)) == (255, 255, 255)
    assert pixel(encode(Image.fromarray(np.full((1, 1), 40000, np.uint16)), transparency=40000)) == (255, 255, 255)
    assert pixel(encode(Image.fromarray(np.full((1, 1), 40001, np.uint16)), transparency=40000)) == (156, 156, 156)


def test_16_bits_are_scaled_not_saturated() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.flat[40000] == 156
    big_endian = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
    pgm = b"P5 256 256 65535\n" + values.astype(">u2").tobytes()
    for data in (
        encode(Image.fromarray(values)),
        encode(Image.fromarray(values), "TIFF"),
        encode(big_endian, "TIFF"),
        encode(Image.fromarray(values.astype(np.int32)), "TIFF"),
        pgm,
    ):
        pixels = np.asarray(read_image(data, "test"))
        for channel in range(3):
            np.testing.assert_array_equal(pixels[..., channel], expected)


def test_16_bits_in_colour() -> None:
    assert pixel(png_16_bit(2, 40000, 0, 65535)) == (156, 0, 255)
    assert pixel(png_16_bit(6, 40000, 0, 65535, 0)) == (255, 255, 255)
    assert pixel(png_16_bit(4, 40000, 65535)) == (156, 156, 156)


@pytest.mark.parametrize("values", [np.full((1, 1), 65536, np.int32), np.full((1, 1), -1, np.int32)])
def test_32_bit_values_are_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match="outside 0 to 65535"):
        read_image(encode(Image.fromarray(values), "TIFF"), "test")


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="floating-point"):
        read_image(encode(Image.new("F", (1, 1), 0.5), "TIFF"), "test")


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert pixel(data) == (255, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).swapaxes(0, 1)),
        (8, np.rot90),
    ],
)
def test_exif_orientation(orientation: int, upright: object) -> None:
    stored = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encode(Image.fromarray(stored), exif=exif), "test")
    np.testing.assert_array_equal(np.asarray(image), upright(stored))


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_truncated_files_are_refused(format: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # as a library may have left it
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encode(noise(), format)
    read_image(data, "test")
    with pytest.raises(DataError, match=r"^shard-7, row 3: cannot read the image: "):
        read_image(data[: int(share * len(data))], "shard-7, row 3")


def test_what_is_no_image_is_refused_in_the_same_words_each_time() -> None:
    eps = encode(noise(), "EPS")
    for data in (b"", b"<html><body>404</body></html>", eps):
        with pytest.raises(DataError) as caught:
            read_image(data, "a.jpg")
        expected = "it is none of JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM"
        assert str(caught.value) == f"a.jpg: cannot read the image: {expected}; repair or remove it"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png: cannot read the image: No such file or directory"):
        read_image(tmp_path / "gone.png", str(tmp_path / "gone.png"))


def test_a_path_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(noise()))
    assert read_image(path, "a").tobytes() == read_image(path.read_bytes(), "a").tobytes() == noise().tobytes()


@pytest.mark.parametrize("limit", [3000, 1500])
def test_bombs_are_refused(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 x 64 = 4,096 pixels: between one and two times the limit Pillow only warns, above it raises
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(DataError, match=r"4096 pixels|64 x 64 pixels"):
            read_image(encode(noise()), "test")


def test_threads_read_the_same_as_one_thread() -> None:
    files = [encode(noise().rotate(angle), "JPEG") for angle in range(0, 360, 15)]
    alone = [read_image(data, "test").tobytes() for data in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda data: read_image(data, "test").tobytes(), files * 8))
    assert together == alone * 8
