"""TIFF files of 8 and 16 bits and of floats, of one page or several; Pillow writes the tags, and no 16-bit color."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from basicsr_compat.image_files.pixels import STRUCTURE
from basicsr_compat.images import Photo
from iter_model.photo.levels import rows_of, strips

_HEADER = b"II*\0\0\0\0\0"
_DEFLATE, _HORIZONTAL, _UNASSOCIATED, _INCHES = 8, 2, 2, 2
_BYTE, _LONG, _UNDEFINED = 1, 4, 7
_OFFSETS = 273
_XMP, _ICC, _EXIF, _GPS, _INTEROPERABILITY = 700, 34675, 0x8769, 0x8825, 0xA005


def write_tiff(file: BinaryIO, photos: Sequence[Photo]) -> None:
    """Write photos, which may differ in size and kind, as the pages of a file.

    Raises:
        OSError: over 4 GB.
    """
    file.write(_HEADER)
    pointer = 4
    for photo in photos:
        file.seek(0, 2)
        tags = _described(photo) | _write_pixels(file, photo)
        start = file.seek(0, 2)
        start += file.write(b"\0" * (start % 2))
        directory = _directory(photo, tags, start)
        if start + len(directory) >= 2**32:
            raise OSError("a TIFF file holds 4 GB; write another kind of file (--ext png)")
        file.write(directory)
        file.seek(pointer)
        file.write(struct.pack("<I", start))
        pointer = start + 2 + 12 * int.from_bytes(directory[:2], "little")


def _channels(photo: Photo, bits: int, rows: slice) -> np.ndarray:
    found = rows_of(photo, bits, rows)
    if bits > 8 and found.shape[2] == 2:  # gray with alpha, which hardly any reader knows
        return found[..., [0, 0, 0, 1]]
    return found


def _described(photo: Photo) -> dict[int, Any]:
    height, width = photo.rgb.shape[:2]
    channels = _channels(photo, photo.bit_depth, slice(0, 1)).shape[2]
    tags: dict[int, Any] = {
        256: width,
        257: height,
        258: (photo.bit_depth,) * channels,
        259: _DEFLATE,
        262: 2 if channels > 2 else 1,
        277: channels,
        284: 1,
        339: (3 if photo.bit_depth == 32 else 1,) * channels,
    }
    if photo.bit_depth < 32:
        tags[317] = _HORIZONTAL
    if channels in (2, 4):
        tags[338] = _UNASSOCIATED
    if photo.metadata.dpi is not None:
        tags |= {282: photo.metadata.dpi[0], 283: photo.metadata.dpi[1], 296: _INCHES}
    return tags


def _write_pixels(file: BinaryIO, photo: Photo) -> dict[int, Any]:
    offsets, counts, height = [], [], 0
    for strip in strips(photo):
        height = height or strip.stop
        rows = _channels(photo, photo.bit_depth, strip)
        if photo.bit_depth < 32:
            rows = np.concatenate([rows[:, :1], np.diff(rows, axis=1)], axis=1)
        offsets.append(file.tell())
        counts.append(file.write(zlib.compress(rows.astype(rows.dtype.newbyteorder("<")).tobytes(), 6)))
    return {_OFFSETS: tuple(offsets), 278: height, 279: tuple(counts)}


def _directory(photo: Photo, tags: dict[int, Any], start: int) -> bytes:
    try:
        return _serialized(photo, _of_exif(photo.metadata.exif) | tags, start)
    except Exception:  # what Pillow raises on damaged EXIF has no common base; it does not cost the photo
        return _serialized(photo, tags, start)


def _serialized(photo: Photo, tags: dict[int, Any], start: int) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2(_HEADER)
    directory.tagtype[_OFFSETS] = _LONG
    for tag, value in tags.items():
        directory[tag] = value
    for tag, kind, value in ((_XMP, _BYTE, photo.metadata.xmp), (_ICC, _UNDEFINED, photo.icc_profile)):
        if value is not None:
            directory.tagtype[tag] = kind
            directory[tag] = value
    return _with_offsets(bytearray(directory.tobytes(start)), start, tags[_OFFSETS])


def _with_offsets(directory: bytearray, start: int, offsets: tuple[int, ...]) -> bytes:
    """A directory whose offsets of strips count from the start of the file: Pillow's count from its own end."""
    entries = range(2, 2 + 12 * int.from_bytes(directory[:2], "little"), 12)
    entry = next(place for place in entries if directory[place : place + 2] == struct.pack("<H", _OFFSETS))
    place = entry + 8 if len(offsets) == 1 else struct.unpack_from("<I", directory, entry + 8)[0] - start
    struct.pack_into(f"<{len(offsets)}I", directory, place, *offsets)
    return bytes(directory)


def _of_exif(exif: bytes | None) -> dict[int, Any]:
    """The tags of an EXIF block that describe the photo, its own directories below them."""
    if exif is None:
        return {}
    block = Image.Exif()
    block.load(b"Exif\0\0" + exif)
    tags = {tag: value for tag, value in block.items() if tag not in STRUCTURE}
    for tag in (_EXIF, _GPS):
        below = {key: value for key, value in block.get_ifd(tag).items() if key != _INTEROPERABILITY}
        tags.pop(tag, None)
        if below:
            tags[tag] = below
    return tags
