"""The reader of image files for training, test, `prepare` and `upscale`, which therefore accept the same files.

Pillow identifies and decodes: unlike OpenCV it refuses truncated files, and it knows palettes, CMYK and orientation. It
reduces 16-bit color to 8 bits, so those pixels come from OpenCV.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFile

# Closed list: Pillow would also try formats that start other programs (EPS) or that hold no photos.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# Names under which they are found; what a file is, its content says.
SUFFIXES = tuple(
    ".avif .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
# Twice Pillow's own limit: 0.5 GB as 8-bit RGB, 2 GB as float32. A file of a few MB may hold more.
MAX_PIXELS = 178_956_970


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message says why."""


class Metadata(NamedTuple):
    """Metadata of a photo.

    exif: the EXIF block, from its byte order on.
    xmp: the XMP packet.
    dpi: dots per inch, horizontal and vertical.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None


class Photo(NamedTuple):
    """An image, with what is needed to write a file of the same kind.

    rgb: (H, W, 3) float32 in [0, 1], upright; the three channels are equal if ``is_gray``.
    alpha: (H, W) float32 in [0, 1], or None.
    bit_depth: 8 or 16 bits per channel.
    is_gray: the file has one channel, or one and alpha.
    icc_profile: the color space of the pixels, as embedded in the file, or None.
    metadata: as it is in the file, where the pixels may lie on their side.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    is_gray: bool = False
    icc_profile: bytes | None = None
    metadata: Metadata = Metadata()


def read_photo(source: bytes | str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read an image file of one of `FORMATS`; of several frames or pages the first.

    Gray, color, palette (with its transparency) and CMYK files of 8 bits, and gray and color files of 16 bits, with
    or without alpha. The orientation that a camera noted in the file is applied.

    Args:
        source: the file's path, whose suffix is not looked at, or its content.
        max_pixels: larger images are refused.

    Raises:
        UnreadableImage: missing, empty, truncated, damaged, no image, too large, or neither 8 nor 16 bits per channel.
            The message names the path, where there is one.
    """
    if not isinstance(source, bytes):
        try:
            return read_photo(Path(source).read_bytes(), max_pixels=max_pixels)
        except OSError as error:
            raise UnreadableImage(f"{source}: {error.strerror or error}") from error
        except ValueError as error:  # UnreadableImage, or a name with a NUL
            raise UnreadableImage(f"{source}: {error}") from error
    decoded = _decode(source, max_pixels)
    scaled = decoded.pixels.astype(np.float32) / np.iinfo(decoded.pixels.dtype).max
    colors = 1 if decoded.is_gray else 3
    return Photo(
        rgb=scaled[..., :1].repeat(3, axis=2) if decoded.is_gray else np.ascontiguousarray(scaled[..., :3]),
        alpha=np.ascontiguousarray(scaled[..., colors]) if scaled.shape[2] > colors else None,
        bit_depth=8 * decoded.pixels.itemsize,
        is_gray=decoded.is_gray,
        icc_profile=decoded.icc_profile,
        metadata=decoded.metadata,
    )


def decode_image(data: bytes | None, flags: int = cv2.IMREAD_COLOR, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels of an image file as OpenCV arranges them, upright.

    Args:
        data: the file's content; None where there is no such file in an LMDB.
        flags: IMREAD_COLOR for (h, w, 3) uint8 BGR, IMREAD_GRAYSCALE for (h, w) uint8, or IMREAD_UNCHANGED for what
            the file holds: gray (h, w), BGR or BGRA, uint8 or uint16.
        max_pixels: larger images are refused.

    Raises:
        UnreadableImage: where `read_photo` raises it.
    """
    pixels, is_gray, *_ = _decode(data or b"", max_pixels)
    if flags == cv2.IMREAD_UNCHANGED:
        if is_gray and pixels.shape[2] == 1:
            return pixels[..., 0]
        order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
        return np.ascontiguousarray(pixels[..., order[pixels.shape[2]]])
    if flags not in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE):
        raise ValueError(f"flags={flags} must be IMREAD_COLOR, IMREAD_GRAYSCALE or IMREAD_UNCHANGED")
    if pixels.dtype == np.uint16:
        pixels = ((pixels + np.uint32(128)) // 257).astype(np.uint8)
    gray = np.ascontiguousarray(pixels[..., 0])
    if flags == cv2.IMREAD_COLOR:
        return cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR) if is_gray else np.ascontiguousarray(pixels[..., 2::-1])
    return gray if is_gray else cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)


def is_image(path: str | os.PathLike) -> bool:
    """Whether the file begins as an image of a known format does; the pixels are not looked at."""
    try:
        with open(path, "rb") as file:
            _identify(file).close()
        return True
    except (OSError, ValueError):
        return False


def printable(text: str) -> str:
    """`text` on one line that any terminal and log can show: a file may be called by line breaks and broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class _Decoded(NamedTuple):
    """pixels: (H, W, 1 to 4) uint8 or uint16, upright: gray or RGB, then alpha where the file has it."""

    pixels: np.ndarray
    is_gray: bool
    icc_profile: bytes | None
    metadata: Metadata


def _decode(data: bytes, max_pixels: int) -> _Decoded:
    if not data:
        raise UnreadableImage("it is empty (0 bytes)")
    # pyiqa switches this on for the whole process; half a photo must not pass for a photo.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        if data.startswith(_PNG):
            data, profile, xmp = _essential_png(data)
            decoded = _decode_whole(data, profile, max_pixels)
            return decoded._replace(metadata=decoded.metadata._replace(xmp=xmp))
        if data.startswith(b"\xff\xd8") and not _ends(data):
            data = _ended_jpeg(data, max_pixels)
        return _decode_whole(data, None, max_pixels)
    except UnreadableImage:
        raise
    except MemoryError as error:
        raise UnreadableImage("it is too large for this machine's memory") from error
    except Exception as error:  # what Pillow's parsers raise on arbitrary bytes has no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        damage = "truncated" if "truncated" in reason.lower() else "damaged"
        raise UnreadableImage(f"it is {damage} ({reason})") from error


def _decode_whole(data: bytes, profile: bytes | None, max_pixels: int) -> _Decoded:
    with _identify(io.BytesIO(data)) as image:
        if image.width * image.height > max_pixels:
            raise UnreadableImage(
                f"it is too large: {image.width}x{image.height} are {image.width * image.height} pixels, more than "
                f"{max_pixels}; cut it into parts first"
            )
        image.load()
        pixels, is_gray = _channels(image, data)
        pixels = _upright(pixels, _orientation(image))
        profile = profile or image.info.get("icc_profile")
        metadata = _metadata(image)
    # A profile of another color space (CMYK) describes the file's channels, not these.
    fits = profile is not None and profile[16:20] == (b"GRAY" if is_gray else b"RGB ")
    return _Decoded(pixels, is_gray, profile if fits else None, metadata)


def _identify(file: io.BufferedIOBase) -> Image.Image:
    """Image.open without its limit, a global of Pillow's, and without its warning at half of that."""
    Image.init()
    start = file.read(16)
    for factory, accepts in (Image.OPEN[name] for name in FORMATS if name in Image.OPEN):
        accepted = accepts(start)
        if accepted and not isinstance(accepted, str):  # a string says which library Pillow was built without
            file.seek(0)
            with contextlib.suppress(Exception):  # as in _decode
                return factory(file, "")
    raise UnreadableImage(f"it is not an image of a known kind ({', '.join(FORMATS)}), or damaged at its start")


def _channels(image: Image.Image, data: bytes) -> tuple[np.ndarray, bool]:
    """Channels of a loaded image as the file has them: (H, W, 1 to 4) gray(, alpha) or RGB(, alpha); whether gray."""
    if image.format == "PNG":
        bits = data[24]
    elif image.format == "TIFF":
        bits = max(image.tag_v2.get(258, (1,)))
    else:
        bits = 16 if image.mode[0] in "IF" else 8
    if bits > 8:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if getattr(pixels, "dtype", None) != np.uint16:
            raise UnreadableImage(f"{bits} bits per channel cannot be read; save it with 8 or 16 bits per channel")
        if pixels.ndim == 2:
            return pixels[..., None], True
        if image.format == "PNG" and data[25] == 4:  # gray with alpha: OpenCV repeats the gray
            return pixels[..., 2:], True
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB), False
    is_gray = image.mode in ("1", "L", "LA", "La")
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.asarray(image.convert(("L" if is_gray else "RGB") + ("A" if has_alpha else "")))
    return np.atleast_3d(pixels), is_gray


def _metadata(image: Image.Image) -> Metadata:
    exif, xmp, dpi = (image.info.get(key) for key in ("exif", "xmp", "dpi"))
    return Metadata(
        exif=exif.removeprefix(b"Exif\0\0") or None if isinstance(exif, bytes) else None,
        xmp=xmp if isinstance(xmp, bytes) else None,
        dpi=tuple(map(float, dpi)) if isinstance(dpi, tuple) and len(dpi) == 2 and min(dpi) >= 1 else None,
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, still to be applied; both decoders have already applied that of TIFF."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # as in _decode; broken metadata does not spoil the pixels
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


# ------------------------------------------------------------------------------------------- PNG

_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks that say what the pixels are. Others, text above all, may be damaged or of any size: viewers skip them.
_ESSENTIAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS"}
_MAX_PROFILE = 2**26
# How an iTXt chunk with an XMP packet begins: not compressed, of no language.
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"


def _essential_png(data: bytes) -> tuple[bytes, bytes | None, bytes | None]:
    """A PNG file reduced to the chunks that the pixels need, its color profile, and its XMP packet.

    Checksums are compared, which Pillow's loading does not.

    Raises:
        UnreadableImage: it is truncated, or one of those chunks is damaged.
    """
    parts, profile, xmp, position = [_PNG], None, None, len(_PNG)
    while True:
        length, kind = struct.unpack_from(">I4s", data, position) if position + 12 <= len(data) else (len(data), b"")
        end = position + 12 + length
        if end > len(data):
            raise UnreadableImage("it is truncated")
        whole = zlib.crc32(memoryview(data)[position + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind in _ESSENTIAL and not whole:
            raise UnreadableImage(f"it is damaged (checksum of its {kind.decode()} chunk)")
        if kind in _ESSENTIAL or (kind in (b"eXIf", b"pHYs") and whole):
            parts.append(data[position:end])
        if kind == b"iCCP" and whole:
            with contextlib.suppress(zlib.error):
                body = data[position + 8 : end - 4].partition(b"\0")[2][1:]
                profile = zlib.decompressobj().decompress(body, _MAX_PROFILE)
        if kind == b"iTXt" and whole and data.startswith(PNG_XMP, position + 8):
            xmp = data[position + 8 + len(PNG_XMP) : end - 4]
        if kind == b"IEND":
            return b"".join(parts), profile, xmp
        position = end


# ------------------------------------------------------------------------------------------- JPEG

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


def _ends(data: bytes) -> bool:
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


def _ended_jpeg(data: bytes, max_pixels: int) -> bytes:
    """A JPEG file that lacks its end marker and nothing else, with one.

    libjpeg fills what is missing with gray, in silence. Nothing is missing exactly if the pixels do not depend on what
    follows the file's last byte.

    Raises:
        UnreadableImage: more than the marker is missing.
    """
    data = data.rstrip(b"\xff")
    if not _has_all_scans(data):
        raise UnreadableImage("it is truncated")
    tails = [b"", _noise(0xD0), _noise(0xD4)]
    ended = [data + tail + b"\xff\xd9" for tail in tails]
    first, *others = (_decode_whole(one, None, max_pixels).pixels for one in ended)
    if not all(np.array_equal(first, other) for other in others):
        raise UnreadableImage("it is truncated")
    return ended[0]


def _noise(first: int) -> bytes:
    """Coded pixels of no meaning, with the restart markers D0 to D7 that a decoder may be waiting for from `first` on.

    Of a marker that it waits for a little later it skips all that is missing: two orders leave none out.
    """
    fill = random.Random(first).randbytes(256).replace(b"\xff", b"")
    return fill + b"".join(b"\xff%c%b" % (0xD0 + (first + i) % 8, fill) for i in range(8))
