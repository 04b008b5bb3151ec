"""Writing photos as the kind of file that they were: gray or color, with or without alpha, of 8 or 16 bits."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from basicsr_compat.files import atomic_write
from basicsr_compat.images import PNG_XMP, Photo

# Of pixels that are converted and compressed at a time.
STRIP_BYTES = 1 << 20
DEFAULT_QUALITY = 95
# What a segment of a JPEG file holds; longer metadata is left out of lossy kinds.
_SEGMENT = 65_000


def write_photo(path: str | os.PathLike, photo: Photo, kind: str = "png", quality: int | None = None) -> None:
    """Write an image file that is there whole or not at all.

    Values are clipped to [0, 1] and rounded; gray is the mean of the channels.

    Args:
        path: the file, whose suffix is not looked at. Its folder must exist; an older file is replaced.
        photo: what to write; its metadata as they are, see `metadata.corrected`.
        kind: one of `WRITERS`. What it cannot hold is lost: 16 bits become 8, and alpha is laid over white.
        quality: of lossy kinds, 1 to 100; default `DEFAULT_QUALITY`.

    Raises:
        ValueError: ``photo`` has a wrong shape or bit depth, or there is no such ``kind``.
        OSError: the file cannot be written.
    """
    if photo.rgb.ndim != 3 or photo.rgb.shape[2] != 3 or 0 in photo.rgb.shape:
        raise ValueError(f"photo.rgb has shape {photo.rgb.shape}, must be (H, W, 3) with H, W >= 1")
    if photo.alpha is not None and photo.alpha.shape != photo.rgb.shape[:2]:
        raise ValueError(f"photo.alpha has shape {photo.alpha.shape}, must be that of photo.rgb: {photo.rgb.shape[:2]}")
    if photo.bit_depth not in (8, 16):
        raise ValueError(f"photo.bit_depth={photo.bit_depth} must be 8 or 16")
    if kind not in WRITERS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(WRITERS)}")
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        WRITERS[kind](file, photo, DEFAULT_QUALITY if quality is None else quality)


def _levels(photo: Photo, rows: slice) -> np.ndarray:
    """Some rows of a photo as a PNG file has them: (rows, W, 1 to 4) big-endian integers."""
    color = photo.rgb[rows].mean(axis=2, keepdims=True) if photo.is_gray else photo.rgb[rows]
    channels = color if photo.alpha is None else np.dstack([color, photo.alpha[rows]])
    return np.rint(np.clip(channels, 0, 1) * (2**photo.bit_depth - 1)).astype(f">u{photo.bit_depth // 8}")


def _write_png(file: BinaryIO, photo: Photo, quality: int) -> None:
    file.writelines(_encode_png(photo))


def _write_jpeg(file: BinaryIO, photo: Photo, quality: int) -> None:
    if photo.alpha is not None:
        alpha = photo.alpha[..., None]
        photo = photo._replace(rgb=photo.rgb * alpha + (1 - alpha), alpha=None)
    _save(file, photo, "JPEG", quality=quality, subsampling=0)


def _write_webp(file: BinaryIO, photo: Photo, quality: int) -> None:
    _save(file, photo, "WEBP", quality=quality)


def _write_avif(file: BinaryIO, photo: Photo, quality: int) -> None:
    _save(file, photo, "AVIF", quality=quality)


def _save(file: BinaryIO, photo: Photo, form: str, **options: Any) -> None:
    exif, xmp, dpi = photo.metadata
    if exif is not None and len(exif) < _SEGMENT:
        options["exif"] = b"Exif\0\0" + exif
    if xmp is not None and len(xmp) < _SEGMENT:
        options["xmp"] = xmp
    if dpi is not None:
        options["dpi"] = dpi
    _eight_bits(photo).save(file, form, icc_profile=photo.icc_profile, **options)


def _eight_bits(photo: Photo) -> Image.Image:
    levels = _levels(photo._replace(bit_depth=8), slice(None))
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def _encode_png(photo: Photo) -> Iterator[bytes]:
    """The PNG file of a photo, part by part, so that a large one is never held twice.

    Pillow cannot write 16-bit color, and OpenCV no gray with alpha.
    """
    height, width = photo.rgb.shape[:2]
    channels = (1 if photo.is_gray else 3) + (photo.alpha is not None)
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, photo.bit_depth, color_type, 0, 0, 0)
    yield b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    exif, xmp, dpi = photo.metadata
    if photo.icc_profile is not None:
        yield chunk(b"iCCP", b"icc\0\0" + zlib.compress(photo.icc_profile))
    if dpi is not None:
        yield chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in dpi), 1))
    if xmp is not None:
        yield chunk(b"iTXt", PNG_XMP + xmp)
    if exif is not None:
        yield chunk(b"eXIf", exif)
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


# Kind of file: what writes it. A new kind is a row.
WRITERS: dict[str, Callable[[BinaryIO, Photo, int], None]] = {
    "png": _write_png,
    "jpg": _write_jpeg,
    "webp": _write_webp,
    "avif": _write_avif,
}
