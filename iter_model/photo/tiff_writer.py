"""A writer of TIFF files of 8 and 16 bits and of floats, with one or several pages; Pillow writes no 16-bit color."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL import TiffImagePlugin as tiff

from basicsr_compat.image_files.metadata import EXIF_DIRECTORIES, STRUCTURE
from basicsr_compat.images import Photo
from iter_model.photo.levels import rows_of, strips

_HEADER = b"II*\0\0\0\0\0"
# Values of tags, in the words of the TIFF specification, and types of values.
_DEFLATE, _BLACK_IS_ZERO, _RGB, _CHUNKY, _HORIZONTAL, _UNASSOCIATED, _INCHES, _WHOLE, _FLOAT = 8, 1, 2, 1, 2, 2, 2, 1, 3
_BYTE, _LONG, _UNDEFINED = 1, 4, 7


def write_tiff(file: BinaryIO, photos: Sequence[Photo]) -> None:
    """Write photos, which may differ in size and kind, as the pages of a file.

    Raises:
        OSError: the file cannot be written, or would be larger than 4 GB.
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
        tiff.IMAGEWIDTH: width,
        tiff.IMAGELENGTH: height,
        tiff.BITSPERSAMPLE: (photo.bit_depth,) * channels,
        tiff.COMPRESSION: _DEFLATE,
        tiff.PHOTOMETRIC_INTERPRETATION: _RGB if channels > 2 else _BLACK_IS_ZERO,
        tiff.SAMPLESPERPIXEL: channels,
        tiff.PLANAR_CONFIGURATION: _CHUNKY,
        tiff.SAMPLEFORMAT: (_FLOAT if photo.bit_depth == 32 else _WHOLE,) * channels,
    }
    if photo.bit_depth < 32:
        tags[tiff.PREDICTOR] = _HORIZONTAL
    if channels in (2, 4):
        tags[tiff.EXTRASAMPLES] = _UNASSOCIATED
    if photo.metadata.dpi is not None:
        tags[tiff.X_RESOLUTION], tags[tiff.Y_RESOLUTION] = photo.metadata.dpi
        tags[tiff.RESOLUTION_UNIT] = _INCHES
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
    return {tiff.STRIPOFFSETS: tuple(offsets), tiff.ROWSPERSTRIP: height, tiff.STRIPBYTECOUNTS: tuple(counts)}


def _directory(photo: Photo, tags: dict[int, Any], start: int) -> bytes:
    try:
        return _serialized(photo, _of_exif(photo.metadata.exif) | tags, start)
    except Exception:  # what Pillow raises on damaged EXIF has no common base; it does not cost the photo
        return _serialized(photo, tags, start)


def _serialized(photo: Photo, tags: dict[int, Any], start: int) -> bytes:
    directory = tiff.ImageFileDirectory_v2(_HEADER)
    directory.tagtype[tiff.STRIPOFFSETS] = _LONG
    for tag, value in tags.items():
        directory[tag] = value
    for tag, kind, value in ((tiff.XMP, _BYTE, photo.metadata.xmp), (tiff.ICCPROFILE, _UNDEFINED, photo.icc_profile)):
        if value is not None:
            directory.tagtype[tag] = kind
            directory[tag] = value
    return _with_offsets(bytearray(directory.tobytes(start)), start, tags[tiff.STRIPOFFSETS])


def _with_offsets(directory: bytearray, start: int, offsets: tuple[int, ...]) -> bytes:
    """A directory whose offsets of strips count from the start of the file; Pillow's count from its own end."""
    entries = range(2, 2 + 12 * int.from_bytes(directory[:2], "little"), 12)
    entry = next(place for place in entries if directory[place : place + 2] == struct.pack("<H", tiff.STRIPOFFSETS))
    place = entry + 8 if len(offsets) == 1 else struct.unpack_from("<I", directory, entry + 8)[0] - start
    struct.pack_into(f"<{len(offsets)}I", directory, place, *offsets)
    return bytes(directory)


def _of_exif(exif: bytes | None) -> dict[int, Any]:
    """The tags of an EXIF block that describe the photo, with its subdirectories."""
    if exif is None:
        return {}
    block = Image.Exif()
    block.load(b"Exif\0\0" + exif)
    tags = {tag: value for tag, value in block.items() if tag not in STRUCTURE}
    for tag in EXIF_DIRECTORIES:
        below = {key: value for key, value in block.get_ifd(tag).items() if key != ExifTags.IFD.Interop}
        tags.pop(tag, None)
        if below:
            tags[tag] = below
    return tags
