"""What a photo's file says of it, corrected for the result: upright, of another size, without its thumbnail."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from PIL import ExifTags

from basicsr_compat.images import Metadata

_WIDTHS = (ExifTags.Base.ImageWidth, ExifTags.Base.ExifImageWidth)
_HEIGHTS = (ExifTags.Base.ImageLength, ExifTags.Base.ExifImageHeight)
_SHORT, _LONG = 3, 4
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>))\d")


def corrected(metadata: Metadata, size: tuple[int, int]) -> Metadata:
    """The metadata of an upright photo of this size (height, width); what is damaged is left out."""
    xmp = metadata.xmp and _XMP_ORIENTATION.sub(rb"\g<1>1", metadata.xmp)
    return metadata._replace(exif=metadata.exif and _corrected_exif(metadata.exif, size), xmp=xmp)


def _corrected_exif(exif: bytes, size: tuple[int, int]) -> bytes | None:
    """Changed in place, so that maker notes, which count from the start of the block, stay readable."""
    data = bytearray(exif)
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return None
    values = dict.fromkeys(_WIDTHS, size[1]) | dict.fromkeys(_HEIGHTS, size[0]) | {ExifTags.Base.Orientation: 1}
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


def _entries(data: bytes, order: str, offset: int) -> Iterator[tuple[int, int, int]]:
    """Tag, type and the place of the value of every entry of a directory."""
    (count,) = struct.unpack_from(f"{order}H", data, offset)
    for start in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, start)
        yield tag, kind, start + 8


def _set(data: bytearray, order: str, tag: int, kind: int, position: int, values: dict[int, int]) -> None:
    value = values.get(tag, -1)
    if kind == _SHORT and 0 <= value < 2**16:
        struct.pack_into(f"{order}H", data, position, value)
    elif kind == _LONG and value >= 0:
        struct.pack_into(f"{order}I", data, position, value)
