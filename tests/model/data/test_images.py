"""Images: what is refused, and what every kind of file becomes."""

from __future__ import annotations

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.data.images import ImageFormatError, ImageTooLargeError, decode, pixel_digest
from model.errors import DataError, MissingInputError

RED, GREEN = (255, 0, 0), (0, 255, 0)


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [30_000, 11_000, 7_072])
def test_an_image_above_the_limit_is_refused_from_its_header_without_memory_for_its_pixels(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageTooLargeError, match=rf"bomb.png has {side:,} x {side:,} pixels, the limit is 50,000,000"):
        decode(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB


def test_the_limit_is_the_callers(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", max_pixels=100).size == (10, 10)
    with pytest.raises(ImageTooLargeError, match="10 x 10 pixels, the limit is 99"):
        decode(tmp_path / "a.png", max_pixels=99)


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])
def test_a_truncated_image_is_an_error_and_not_half_an_image(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=rf"a.{ending} .*truncated or damaged"):
        decode(path)


def test_a_missing_image_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no image at"):
        decode(tmp_path / "none.png")


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"%PDF-1.4 x", b"hello", b"BM"])
def test_what_is_not_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png"):
        decode(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["GIF", "TIFF", "WEBP", "JPEG2000", "ICO", "EPS", "PPM"])
def test_formats_outside_the_allow_list_are_refused_whatever_their_name(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", format=name)
    with pytest.raises(ImageFormatError, match="is not a PNG, JPEG or BMP image"):
        decode(tmp_path / "a.png")


def test_an_ending_that_names_another_format_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format="PNG")
    with pytest.raises(ImageFormatError, match=r"holds a PNG image but its name ends in \.jpg"):
        decode(tmp_path / "a.jpg")


def test_grey_bilevel_and_palette_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 77).save(tmp_path / "grey.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "bits.png")
    Image.new("RGB", (4, 4), RED).convert("P").save(tmp_path / "palette.png")
    assert decode(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    assert decode(tmp_path / "bits.png").getpixel((0, 0)) == (255, 255, 255)
    assert decode(tmp_path / "palette.png").getpixel((0, 0)) == RED


def test_sixteen_bits_are_scaled_from_darkest_to_brightest(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 1500, 2000]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(decode(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.full((2, 2), 9000, np.uint16)).save(tmp_path / "flat.png")
    assert np.asarray(decode(tmp_path / "flat.png")).max() == 0


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.jpg")
    assert decode(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


def test_transparent_pixels_are_laid_on_black(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 255, 255, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (200, 100, 0, 128)).save(tmp_path / "half.png")
    Image.new("LA", (4, 4), (255, 0)).save(tmp_path / "grey.png")
    assert decode(tmp_path / "clear.png").getpixel((0, 0)) == (0, 0, 0)
    assert decode(tmp_path / "half.png").getpixel((0, 0)) == (100, 50, 0)
    assert decode(tmp_path / "grey.png").getpixel((0, 0)) == (0, 0, 0)


def test_the_orientation_of_the_camera_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10), RED)
    image.paste(GREEN, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    image.save(tmp_path / "a.png", exif=exif)
    upright = decode(tmp_path / "a.png")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == GREEN
    assert upright.getpixel((5, 17)) == RED


def test_the_digest_names_pixels_and_not_files(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8), RED)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "a.bmp")
    image.putpixel((3, 3), (254, 0, 0))
    image.save(tmp_path / "b.png")
    a, same, other = (pixel_digest(decode(tmp_path / name)) for name in ("a.png", "a.bmp", "b.png"))
    assert a == same != other
    assert pixel_digest(Image.new("RGB", (4, 2))) != pixel_digest(Image.new("RGB", (2, 4)))
