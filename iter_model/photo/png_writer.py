"""A writer of PNG files that Pillow and OpenCV cannot write, or not well.

With 16 bits per channel, Pillow writes no color, and OpenCV no gray with alpha. Of large photos, Pillow makes a copy of
four bytes per pixel.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from basicsr_compat.image_files import png
from basicsr_compat.images import Photo
from iter_model.photo.levels import rows_of, strips

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def encode_png(photo: Photo, bits: int) -> Iterator[bytes]:
    """Yield a PNG file part by part, so that a large one is never held twice. bits: 8 or 16 per channel."""
    height, width = photo.rgb.shape[:2]
    channels = (1 if photo.is_gray else 3) + (photo.alpha is not None)
    yield png.SIGNATURE
    yield _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOR_TYPES[channels], 0, 0, 0))
    exif, xmp, dpi, text, *_ = photo.metadata
    for kind, body in photo.color_chunks:
        yield _chunk(kind, body)
    if photo.icc_profile is not None:
        yield _chunk(b"iCCP", b"icc\0\0" + zlib.compress(photo.icc_profile))
    if dpi is not None:
        yield _chunk(b"pHYs", struct.pack(">IIB", *(round(dots / 0.0254) for dots in dpi), 1))
    if xmp is not None:
        yield _chunk(b"iTXt", png.XMP + xmp)
    for kind, body in text:
        yield _chunk(kind, body)
    if exif is not None:
        yield _chunk(b"eXIf", exif)
    yield from _pixels(photo, bits, channels)
    yield _chunk(b"IEND", b"")


def _pixels(photo: Photo, bits: int, channels: int) -> Iterator[bytes]:
    # Level 1 is as fast as OpenCV's encoder and smaller; level 6 takes five times as long for 10% less.
    compressor = zlib.compressobj(1)
    length = photo.rgb.shape[1] * channels * bits // 8
    above = np.zeros((1, length), np.uint8)
    for strip in strips(photo):
        rows = rows_of(photo, bits, strip)
        rows = rows.astype(rows.dtype.newbyteorder(">")).reshape(len(rows), -1).view(np.uint8)
        # Filter type 2: every row as its difference from the row above.
        filtered = np.full((len(rows), 1 + length), 2, np.uint8)
        np.subtract(rows, np.concatenate([above, rows[:-1]]), out=filtered[:, 1:])
        above = rows[-1:]
        yield _chunk(b"IDAT", compressor.compress(filtered.data))
    yield _chunk(b"IDAT", compressor.flush())


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
