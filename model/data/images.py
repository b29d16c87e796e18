"""Reading an image file without trusting it.

The journey of an image:
1. The file is opened with an allow-list of formats that are recognised by content (PNG, JPEG, BMP), whatever its name ends in.
2. Width x height is read from the header and compared with the limit *before* a pixel is decoded: a bomb costs milliseconds.
3. The pixels are decoded completely; a truncated file is an error, never a grey half.
4. The orientation written by a camera (EXIF) is applied, and the result becomes RGB by the rules of `to_rgb`.

`pixel_digest` names the decoded pixels, so that equal pictures are found behind different files.
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin

from model.errors import DataError, MissingInputError

FORMATS = ("PNG", "JPEG", "BMP")
ENDINGS = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",)}
SIGNATURES = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "BMP": b"BM"}
PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
}
MAX_PIXELS = 50_000_000
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageTooLargeError(DataError):
    """More pixels than the limit allows."""


class ImageFormatError(DataError):
    """Not one of the formats of the allow-list, or a name that says another format."""


def decode(source: Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An image as 8-bit RGB, upright.

    Args:
        source: A PNG, JPEG or BMP file, or its content.
        max_pixels: Largest width x height in pixels.

    Raises:
        MissingInputError: There is no such file.
        ImageTooLargeError: Width x height is above `max_pixels`.
        ImageFormatError: Another format, or an ending that names another format than the content has.
        DataError: Empty, truncated or damaged.
    """
    name, ending = (str(source), source.suffix.lower()) if isinstance(source, Path) else ("the image", "")
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            size = _check_header(stream, name, ending, max_pixels)
            return _decoded(stream, name, size)
    except FileNotFoundError:
        raise MissingInputError(f"no image at {name}", "restore the file, or import the data set again") from None
    except (IsADirectoryError, PermissionError) as error:
        raise MissingInputError(f"cannot read the image {name}: {error.strerror}", "check its path and permissions") from None


def _decoded(stream: BinaryIO, name: str, size: int) -> Image.Image:
    """Every pixel of a stream whose header was checked; `size` is its length in bytes."""
    try:
        with Image.open(stream, formats=FORMATS) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Only where the recipe's limit is above Pillow's own.
        raise ImageTooLargeError(f"{name}: {error}", "scale the image down") from None
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError) as error:
        # SyntaxError and struct.error are Pillow's own ways to say that a chunk is broken.
        raise DataError(f"{name} ({size:,} bytes) is truncated or damaged: {error}", "restore the file") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB from any mode that the formats know.

    Transparent pixels are laid on black (the background of medical images). 16-bit grey is scaled from its own darkest and
    brightest value to 0..255, since scanners use a small part of the range. CMYK, palette, grey and 1-bit go through Pillow.
    """
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray(_scale_to_8_bit(np.asarray(image))).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def pixel_digest(image: Image.Image) -> str:
    """SHA-256 (64 hex digits) over mode, size and decoded pixels: equal pictures have equal digests, whatever their files."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height}\n".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _check_header(stream: BinaryIO, name: str, ending: str, max_pixels: int) -> int:
    """Refuse by signature, ending and the size that the header declares; nothing is decoded. The length in bytes.

    The plugin's class is used instead of `Image.open`, which refuses very large headers before it tells their size.
    """
    start = stream.read(8)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    kind = next((kind for kind, signature in SIGNATURES.items() if start.startswith(signature)), "")
    if not kind:
        raise ImageFormatError(
            f"{name} ({size:,} bytes) is not a PNG, JPEG or BMP image", "convert it to PNG, or remove its record"
        )
    if ending and ending not in ENDINGS[kind]:
        raise ImageFormatError(
            f"{name} holds a {kind} image but its name ends in {ending}", f"rename it to end in {ENDINGS[kind][0]}"
        )
    try:
        width, height = PLUGINS[kind](stream).size
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, IndexError) as error:
        raise DataError(f"{name} ({size:,} bytes) is truncated or damaged: {error}", "restore the file") from None
    stream.seek(0)
    if width * height > max_pixels:
        raise ImageTooLargeError(
            f"{name} has {width:,} x {height:,} pixels, the limit is {max_pixels:,} pixels",
            "scale the image down, or raise data.max_image_pixels in the recipe",
        )
    return size


def _scale_to_8_bit(values: np.ndarray) -> np.ndarray:
    """Darkest value -> 0, brightest -> 255; a flat image becomes black. (H, W) any integer -> (H, W) uint8."""
    low, high = int(values.min()), int(values.max())
    if low == high:
        return np.zeros(values.shape, np.uint8)
    return ((values.astype(np.float64) - low) * (255.0 / (high - low))).round().astype(np.uint8)
