"""PNG files for the image reader: the chunks that the pixels need, and the metadata to keep.

Pillow limits the size of text chunks and refuses a file for a wrong checksum in one; it does not compare those of the
pixels. Viewers do the opposite, and so does this.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from basicsr_compat.image_files.errors import UnreadableImage

SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that say what the pixels are. Others, text above all, may be damaged or of any size: viewers skip them.
_ESSENTIAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
# What Pillow is to see of the rest.
_SHOWN = {b"eXIf", b"pHYs"}
# Kept as they are: what colors mean where there is no profile, and text.
COLOR = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
TEXT = (b"tEXt", b"zTXt", b"iTXt")
_MAX_PROFILE = 2**26
# How an iTXt chunk with an XMP packet begins: not compressed, of no language.
XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
Chunks = tuple[tuple[bytes, bytes], ...]


class EssentialPng(NamedTuple):
    """The chunks of a PNG file that are used.

    data: the file reduced to what Pillow needs.
    profile, xmp: as embedded, or None.
    color, text: kind and content of chunks to keep.
    frames: number of frames of an animation, 1 for an image.
    """

    data: bytes
    profile: bytes | None
    xmp: bytes | None
    color: Chunks
    text: Chunks
    frames: int


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int, bool]]:
    """Yield the kind, the start, the end, and whether the checksum fits, of every chunk up to the last.

    Raises:
        UnreadableImage: the file is truncated.
    """
    position = len(SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, position) if position + 12 <= len(data) else (len(data), b"")
        end = position + 12 + length
        if end > len(data):
            raise UnreadableImage("it is truncated")
        crc = zlib.crc32(memoryview(data)[position + 4 : end - 4])
        yield kind, position, end, crc == int.from_bytes(data[end - 4 : end], "big")
        if kind == b"IEND":
            return
        position = end


def essential(data: bytes, *, animated: bool = False) -> EssentialPng:
    """Read the chunks of a PNG file.

    Args:
        data: the content of the file.
        animated: whether all frames of an animation are kept, not only the first.

    Raises:
        UnreadableImage: the file is truncated, or a chunk that the pixels need is damaged.
    """
    needed = _ESSENTIAL | _ANIMATION if animated else _ESSENTIAL
    parts, profile, xmp, color, text, frames = [SIGNATURE], None, None, [], [], 1
    for kind, start, end, whole in chunks(data):
        body = slice(start + 8, end - 4)
        if kind in needed and not whole:
            raise UnreadableImage(f"it is damaged (checksum of its {kind.decode()} chunk)")
        if kind in needed or (kind in _SHOWN and whole):
            parts.append(data[start:end])
        if not whole:
            continue
        if kind == b"iCCP":
            profile = _profile(data[body]) or profile
        elif kind == b"iTXt" and data.startswith(XMP, start + 8):
            xmp = data[body][len(XMP) :]
        elif kind in COLOR:
            color.append((kind, data[body]))
        elif kind in TEXT:
            text.append((kind, data[body]))
        elif kind == b"acTL":
            frames = max(1, int.from_bytes(data[body][:4], "big"))
    return EssentialPng(b"".join(parts), profile, xmp, tuple(color), tuple(text), frames)


def is_whole(data: bytes) -> bool:
    """Whether every chunk is there, and those of the pixels are undamaged."""
    try:
        return all(whole for kind, _, _, whole in chunks(data) if kind in _ESSENTIAL | _ANIMATION)
    except UnreadableImage:
        return False


def _profile(body: bytes) -> bytes | None:
    with contextlib.suppress(zlib.error):
        return zlib.decompressobj().decompress(body.partition(b"\0")[2][1:], _MAX_PROFILE)
    return None
