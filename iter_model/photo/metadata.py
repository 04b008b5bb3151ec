"""The metadata of a photo's file, corrected for the result: upright, with its size, and without a thumbnail."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping

from PIL import ExifTags

from basicsr_compat.images import Metadata

_WIDTHS = (ExifTags.Base.ImageWidth, ExifTags.Base.ExifImageWidth)
_HEIGHTS = (ExifTags.Base.ImageLength, ExifTags.Base.ExifImageHeight)
_SHORT, _LONG = 3, 4
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))\d")


def corrected(metadata: Metadata, size: tuple[int, int]) -> Metadata:
    """The metadata of an upright photo of this (height, width); damaged parts are left out."""
    xmp = metadata.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", metadata.xmp)
    return metadata._replace(exif=metadata.exif and _corrected_exif(metadata.exif, size), xmp=xmp)


def _corrected_exif(exif: bytes, size: tuple[int, int]) -> bytes | None:
    """Correct values in place, so that maker notes, whose offsets count from the start of the block, stay readable."""
    data = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return None
    height, width = size
    values: dict[int, int] = {ExifTags.Base.Orientation: 1, **dict.fromkeys(_WIDTHS, width)}
    values |= dict.fromkeys(_HEIGHTS, height)
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        for tag, kind, position in [*_entries(data, order, first)]:
            if tag == ExifTags.IFD.Exif:
                (second,) = struct.unpack_from(f"{order}I", data, position)
                for entry in [*_entries(data, order, second)]:
                    _set(data, order, *entry, values)
            _set(data, order, tag, kind, position, values)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        struct.pack_into(f"{order}I", data, first + 2 + 12 * count, 0)  # the directory of the thumbnail
    except struct.error:
        return None
    return bytes(data)


def _entries(data: bytearray, order: str, offset: int) -> Iterator[tuple[int, int, int]]:
    """The tag, the type, and the offset of the value of every entry of a directory."""
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    for start in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, start)
        yield tag, kind, start + 8


def _set(data: bytearray, order: str, tag: int, kind: int, position: int, values: Mapping[int, int]) -> None:
    value = values.get(tag, -1)
    if kind == _SHORT and 0 <= value < 2**16:
        struct.pack_into(f"{order}H", data, position, value)
    elif kind == _LONG and value >= 0:
        struct.pack_into(f"{order}I", data, position, value)
