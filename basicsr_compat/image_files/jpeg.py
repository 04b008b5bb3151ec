"""JPEG files as the reader of images needs them: where they end, and whether all of them is there."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

import numpy as np

from basicsr_compat.image_files.errors import UnreadableImage

SIGNATURE = b"\xff\xd8"
_MARKER = re.compile(rb"\xff+([^\xff\x00\x01\xd0-\xd8])")
_START_OF_SCAN, _END = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of every segment of a JPEG file up to its end, stepping over thumbnails and coded pixels."""
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
    """Whether a JPEG file has its end marker; what follows it is no part of the picture."""
    return any(marker == _END for marker, _ in _segments(data))


def _has_all_scans(data: bytes) -> bool:
    """Whether every coefficient of every component is there to the last bit, as far as the scans' headers tell."""
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
    """A JPEG file that lacks its end marker and nothing else, with one.

    libjpeg fills what is missing with gray, in silence. Nothing is missing exactly if the pixels do not depend on what
    follows the file's last byte.

    Args:
        decode: the pixels of a file.

    Raises:
        UnreadableImage: more than the marker is missing.
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
    """Coded pixels of no meaning, with the restart markers D0 to D7 that a decoder may be waiting for from `first` on.

    Of a marker that it waits for a little later it skips all that is missing: two orders leave none out.
    """
    fill = random.Random(first).randbytes(256).replace(b"\xff", b"")
    return fill + b"".join(b"\xff%c%b" % (0xD0 + (first + i) % 8, fill) for i in range(8))
