"""Reading photos as people have them, and writing PNG files, for `basicsr upscale`.

Pillow identifies, checks and decodes files: unlike OpenCV it refuses a truncated one, and it knows palettes, CMYK and
orientation. It reduces 16-bit colour to 8 bits, so those pixels come from OpenCV.
"""

from __future__ import annotations

import io
import os
import secrets
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

# Closed list: Pillow would also try formats that start other programs (EPS) or that hold no photos.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
# Of pixels that are converted and compressed at a time when an image is written.
STRIP_BYTES = 1 << 20


class UnreadableImageError(ValueError):
    """A file that cannot be read as an image; the message names the file and the reason."""


class Photo(NamedTuple):
    """An image with what is needed to write it back as the kind of file that it was.

    rgb: (H, W, 3) float32 in [0, 1], upright; the three channels are equal if ``is_gray``.
    alpha: (H, W) float32 in [0, 1], or None.
    bit_depth: 8 or 16 bits a channel.
    is_gray: the file has one channel, or one and alpha.
    icc_profile: the colour space of the pixels, as embedded in the file, or None.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    is_gray: bool = False
    icc_profile: bytes | None = None


def is_image(path: str | Path) -> bool:
    """Whether the file begins as an image of a known format does; the pixels are not looked at."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # what Pillow's parsers raise on arbitrary bytes has no common base
        return False


def read_image(path: str | Path) -> Photo:
    """Read an image file: BMP, GIF, JPEG, PNG, TIFF or WebP; of several frames or pages the first.

    Gray, colour, palette (with its transparency) and CMYK files of 8 bits, and gray and colour files of 16 bits, with
    or without alpha. The orientation that a camera noted in the file is applied.

    Args:
        path: the file; its name may hold any characters, and its suffix is not looked at.

    Raises:
        UnreadableImageError: missing, empty, truncated, damaged, no image, too many pixels (Pillow's limit against
            decompression bombs), or neither 8 nor 16 bits a channel.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path}: {error.strerror or error}") from error
    if not data:
        raise UnreadableImageError(f"{path}: the file is empty (0 bytes)")
    # pyiqa switches this on for the whole process; half a photo must not pass for a photo.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.verify()  # checksums of PNG, which loading does not compare
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            pixels, is_gray = _pixels(image, data)
            pixels = _upright(pixels, _orientation(image))
            icc_profile = image.info.get("icc_profile")
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{path}: not an image of a known kind ({', '.join(FORMATS)}), or damaged at its start"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{path}: too large, cut it into parts first: {error}") from error
    except Exception as error:  # as in is_image
        reason = str(error) or type(error).__name__
        raise UnreadableImageError(f"{path}: damaged, truncated or of an unknown layout: {reason}") from error

    scaled = pixels.astype(np.float32) / np.iinfo(pixels.dtype).max
    colors = 1 if is_gray else 3
    # A profile of another colour space (CMYK) describes the file's channels, not these.
    if icc_profile is not None and icc_profile[16:20] != (b"GRAY" if is_gray else b"RGB "):
        icc_profile = None
    return Photo(
        rgb=scaled[..., :1].repeat(3, axis=2) if is_gray else np.ascontiguousarray(scaled[..., :3]),
        alpha=np.ascontiguousarray(scaled[..., colors]) if scaled.shape[2] > colors else None,
        bit_depth=8 * pixels.itemsize,
        is_gray=is_gray,
        icc_profile=icc_profile,
    )


def write_image(path: str | Path, photo: Photo) -> None:
    """Write a PNG file of the kind that ``photo`` names: gray or colour, with or without alpha, of 8 or 16 bits.

    Values are clipped to [0, 1] and rounded; gray is the mean of the channels. The file appears complete or not at all:
    a temporary file in the same folder is renamed.

    Raises:
        ValueError: ``photo`` has a wrong shape or bit depth.
        OSError: the file cannot be written.
    """
    if photo.rgb.ndim != 3 or photo.rgb.shape[2] != 3 or 0 in photo.rgb.shape:
        raise ValueError(f"photo.rgb has shape {photo.rgb.shape}, must be (H, W, 3) with H, W >= 1")
    if photo.alpha is not None and photo.alpha.shape != photo.rgb.shape[:2]:
        raise ValueError(f"photo.alpha has shape {photo.alpha.shape}, must be that of photo.rgb: {photo.rgb.shape[:2]}")
    if photo.bit_depth not in (8, 16):
        raise ValueError(f"photo.bit_depth={photo.bit_depth} must be 8 or 16")

    path = Path(path)
    # Not built from the name, which may already be as long as the file system allows.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.writelines(_encode_png(photo))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pixels(image: Image.Image, data: bytes) -> tuple[np.ndarray, bool]:
    """Channels of a loaded image as the file has them: (H, W, 1 to 4) gray(, alpha) or RGB(, alpha); whether gray."""
    if image.format == "PNG":
        bits = data[24]
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (1,)))
    else:
        bits = 8
    if bits > 8:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if getattr(pixels, "dtype", None) != np.uint16:
            raise ValueError(f"{bits} bits a channel cannot be read, save it with 8 or 16 bits a channel")
        if pixels.ndim == 2:
            return pixels[..., None], True
        if image.format == "PNG" and data[25] == 4:  # gray with alpha: OpenCV repeats the gray
            return pixels[..., 2:], True
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB), False
    is_gray = image.mode in ("1", "L", "LA", "La")
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.asarray(image.convert(("L" if is_gray else "RGB") + ("A" if has_alpha else "")))
    return np.atleast_3d(pixels), is_gray


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, still to be applied; both decoders have already applied that of TIFF."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # as in is_image; broken metadata does not spoil the pixels
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation of an array (H, W, C); unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _levels(photo: Photo, rows: slice) -> np.ndarray:
    """Some rows of a photo as a PNG file has them: (rows, W, 1 to 4) big-endian integers."""
    color = photo.rgb[rows].mean(axis=2, keepdims=True) if photo.is_gray else photo.rgb[rows]
    channels = color if photo.alpha is None else np.dstack([color, photo.alpha[rows]])
    return np.rint(np.clip(channels, 0, 1) * (2**photo.bit_depth - 1)).astype(f">u{photo.bit_depth // 8}")


def _encode_png(photo: Photo) -> Iterator[bytes]:
    """The PNG file of a photo, part by part, so that a large one is never held twice.

    Pillow cannot write 16-bit colour, and OpenCV no gray with alpha.
    """
    height, width = photo.rgb.shape[:2]
    channels = (1 if photo.is_gray else 3) + (photo.alpha is not None)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, photo.bit_depth, color_type, 0, 0, 0)
    yield b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if photo.icc_profile is not None:
        yield chunk(b"iCCP", b"icc\0\0" + zlib.compress(photo.icc_profile))
    # Level 1 is as fast as OpenCV's encoder and smaller; level 6 takes five times as long for 10% less.
    compressor = zlib.compressobj(1)
    row_bytes = width * channels * photo.bit_depth // 8
    above = np.zeros((1, row_bytes), np.uint8)
    strip = max(1, STRIP_BYTES // row_bytes)
    for top in range(0, height, strip):
        rows = _levels(photo, slice(top, top + strip)).reshape(-1, width * channels).view(np.uint8)
        # Filter type 2: every row as its difference from the row above.
        filtered = np.full((len(rows), 1 + row_bytes), 2, np.uint8)
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
        above = rows[-1:]
        yield chunk(b"IDAT", compressor.compress(filtered))
    yield chunk(b"IDAT", compressor.flush()) + chunk(b"IEND", b"")
