"""JPEG files for the image reader: where they end, whether they are complete, and extended XMP."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterator

import numpy as np

from basicsr_compat.image_files.errors import UnreadableImage

SIGNATURE = b"\xff\xd8"
_MARKER = re.compile(rb"\xff+([^\xff\x00\x01\xd0-\xd8])")
_START_OF_SCAN, _END = 0xDA, 0xD9
_APP1 = 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# How a segment begins that holds a part of an XMP packet of over 64 kB (XMP specification, part 3, 1.1.3.1).
_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_EXTENSION_NAME = re.compile(rb"HasExtendedXMP\s*(?:=\s*[\"']|>)\s*([0-9A-Fa-f]{32})")
_EXTENSION_PART = 65_400


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every segment of a JPEG file up to its end, without thumbnails and coded pixels."""
    position = 2
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        length = int.from_bytes(data[position : position + 2], "big") if marker != _END else 0
        if position + length > len(data):
            return
        yield marker, data[position + 2 : position + length]
        if marker == _END:
            return
        position += length


def ends(data: bytes) -> bool:
    """Whether a JPEG file has its end marker; what follows that does not belong to the picture."""
    return any(marker == _END for marker, _ in _segments(data))


def extended_xmp(data: bytes, packet: bytes | None) -> bytes | None:
    """The part of a JPEG file's XMP that does not fit into the segment of its `packet`; None where it is incomplete."""
    name = _extension_name(packet)
    if name is None:
        return None
    parts, size = {}, 0
    for marker, content in _segments(data):
        body = content.removeprefix(_EXTENSION + name)
        if marker == _APP1 and len(content) - len(body) > len(name) and len(body) >= 8:
            size, offset = struct.unpack_from(">II", body)
            parts[offset] = body[8:]
    found = b""
    for offset in sorted(parts):
        if offset != len(found):
            return None
        found += parts[offset]
    return found if found and len(found) == size else None


def extension_segments(packet: bytes | None, extension: bytes | None) -> bytes:
    """The segments of a JPEG file that hold the `extended_xmp` of a packet."""
    name = _extension_name(packet)
    if name is None or extension is None:
        return b""
    segments = []
    for offset in range(0, len(extension), _EXTENSION_PART):
        part = extension[offset : offset + _EXTENSION_PART]
        content = _EXTENSION + name + struct.pack(">II", len(extension), offset) + part
        segments.append(struct.pack(">BBH", 0xFF, _APP1, 2 + len(content)) + content)
    return b"".join(segments)


def _extension_name(packet: bytes | None) -> bytes | None:
    found = _EXTENSION_NAME.search(packet or b"")
    return found[1] if found else None


def _has_all_scans(data: bytes) -> bool:
    """Whether the scans hold every bit of every coefficient, according to their headers."""
    components, missing = b"", set()
    for marker, content in _segments(data):
        if marker in _FRAMES:
            components = content[6::3]
            missing = {(component, index) for component in components for index in range(64)}
        elif marker == _START_OF_SCAN and content[-1] & 15 == 0:
            first, last = content[-3], content[-2]
            missing -= {(component, i) for component in content[1:-3:2] for i in range(first, last + 1)}
    return bool(components) and not missing


def ended(data: bytes, decode: Callable[[bytes], np.ndarray]) -> bytes:
    """Add the end marker to a JPEG file that lacks nothing else.

    libjpeg silently fills missing pixels with gray. The file is complete if its pixels do not depend on what follows
    its last byte.

    Args:
        data: the content of the file.
        decode: turns the content of a file into pixels.

    Raises:
        UnreadableImage: more than the end marker is missing.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        raise UnreadableImage("it is truncated")
    tails = [b"", _noise(0xD0), _noise(0xD4)]
    files = [data + tail + b"\xff\xd9" for tail in tails]
    first, *others = map(decode, files)
    if not all(np.array_equal(first, other) for other in others):
        raise UnreadableImage("it is truncated")
    return files[0]


def _noise(first: int) -> bytes:
    """Meaningless coded pixels, with the restart markers D0 to D7 that a decoder may expect, from `first` on.

    A decoder that meets a later marker skips everything before it; with two orders of markers, nothing is skipped.
    """
    fill = random.Random(first).randbytes(256).replace(b"\xff", b"")
    return fill + b"".join(b"\xff%c%b" % (0xD0 + (first + i) % 8, fill) for i in range(8))
