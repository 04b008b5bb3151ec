"""The reader of image files for training, tests, `prepare`, and `upscale`, which thus accept the same files.

Pillow identifies and decodes. Unlike OpenCV it refuses truncated files, and knows palettes, CMYK, and orientation. It
reduces 16-bit color to 8 bits, so OpenCV decodes those pixels. The parts are in `basicsr_compat.image_files`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageSequence, TiffImagePlugin

from basicsr_compat.image_files import jpeg, pixels, png
from basicsr_compat.image_files.errors import UnreadableImage
from basicsr_compat.image_files.metadata import Metadata, metadata_of, metadata_of_deep_tiff
from basicsr_compat.image_files.pixels import FORMATS

__all__ = ["FORMATS", "Frame", "MAX_PIXELS", "Metadata", "Photo", "SUFFIXES", "UnreadableImage", "content_of",
           "decode_image", "image_kind", "is_image", "is_whole", "printable", "read_frames", "read_once",
           "read_photo"]  # fmt: skip

# Names under which images are found; what a file is, its content says.
SUFFIXES = tuple(
    ".apng .avif .bmp .dib .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tga "
    ".tif .tiff .webp".split()
)
# Twice Pillow's own limit: 0.5 GB as 8-bit RGB, 2 GB as float32. A file of a few MB may hold more.
MAX_PIXELS = 178_956_970
# MPO: a JPEG of a phone, whose further images are a map of brightness or depth, or a smaller copy.
_KINDS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2"}
# Bytes. A larger file is read whole only where it starts like an image.
_LARGE = 2**27
# The starts of files whose damage `read_photo` mends before Pillow sees them, or which OpenCV reads.
_REPAIRED = (png.SIGNATURE[:4], jpeg.SIGNATURE, *pixels.TIFF_STARTS)
_T = TypeVar("_T")


class Photo(NamedTuple):
    """An image, with everything that is needed to write a file of the same kind.

    rgb: (H, W, 3) float32 in [0, 1], upright; the three channels are equal if ``is_gray``. A restored photo has whole
        numbers of its ``bit_depth`` instead, uint8 or uint16: a quarter of the memory.
    alpha: (H, W) of the same dtype, or None.
    bit_depth: 8 or 16 bits per channel; 32 of floats.
    is_gray: whether the file has one channel, or one and alpha.
    icc_profile: the color space of the pixels, as embedded in the file, or None.
    color_chunks: kind and content of the chunks that describe the colors of a PNG file without a profile.
    metadata: as it is in the file, where the pixels may lie on their side.
    kind: the kind of the file: 'jpg', 'png', 'tiff', ...
    frames: number of frames or pages of the file, of which this is one.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    bit_depth: int = 8
    is_gray: bool = False
    icc_profile: bytes | None = None
    metadata: Metadata = Metadata()
    color_chunks: png.Chunks = ()
    kind: str = "png"
    frames: int = 1


class Frame(NamedTuple):
    """A frame of an animation, or a page of a document.

    duration: milliseconds; None for a page.
    loop: how often the animation is played, 0 for endlessly; None where the file does not say.
    is_cover: shown by programs that play no animations, and no part of it.
    """

    photo: Photo
    duration: float | None
    loop: int | None
    is_cover: bool


def read_photo(source: bytes | str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Photo:
    """Read an image file of one of `FORMATS`; of several frames or pages, the first.

    Gray, color, palette (with its transparency), CMYK and Lab files of 8 bits, gray and color files of 16 bits and of
    floats, with or without alpha. The orientation that a camera noted in the file is applied. CMYK and Lab become sRGB
    through the profile of the file.

    Args:
        source: the file's path, whose suffix does not matter, or its content.
        max_pixels: larger images are refused.

    Raises:
        UnreadableImage: missing, empty, truncated, damaged, no image, too large, or of another depth. The message
            names the path, where there is one.
    """
    if not isinstance(source, bytes):
        return _of_file(source, lambda data: read_photo(data, max_pixels=max_pixels))
    return _photo(_decode(source, max_pixels))


def read_frames(source: bytes | str | os.PathLike, *, max_pixels: int = MAX_PIXELS) -> Iterator[Frame]:
    """Read the frames of an animation or the pages of a document, one by one, all upright; see `read_photo`.

    Raises:
        UnreadableImage: as in `read_photo`, at the frame that cannot be used.
    """
    data = source if isinstance(source, bytes) else _of_file(source, bytes)
    first = _named(source, lambda: read_photo(data, max_pixels=max_pixels))
    frames = _frames(data, first, max_pixels)
    while True:
        frame = _named(source, lambda: next(frames, None))
        if frame is None:
            return
        yield frame


def decode_image(data: bytes | None, flags: int = cv2.IMREAD_COLOR, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file to upright pixels, arranged as OpenCV does.

    Args:
        data: the file's content; None where there is no such file in an LMDB.
        flags: IMREAD_COLOR for (h, w, 3) uint8 BGR, IMREAD_GRAYSCALE for (h, w) uint8, or IMREAD_UNCHANGED for what
            the file holds: gray (h, w), BGR or BGRA, uint8, uint16 or float32.
        max_pixels: larger images are refused.

    Raises:
        UnreadableImage: where `read_photo` raises it.
    """
    found, is_gray, *_ = _decode(data or b"", max_pixels)
    if flags == cv2.IMREAD_UNCHANGED:
        if is_gray and found.shape[2] == 1:
            return found[..., 0]
        order = {2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}
        return np.ascontiguousarray(found[..., order[found.shape[2]]])
    if flags not in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE):
        raise ValueError(f"flags={flags} must be IMREAD_COLOR, IMREAD_GRAYSCALE or IMREAD_UNCHANGED")
    if found.dtype == np.float32:
        found = np.rint(found * 255).astype(np.uint8)
    if found.dtype == np.uint16:
        found = ((found + np.uint32(128)) // 257).astype(np.uint8)
    gray = np.ascontiguousarray(found[..., 0])
    if flags == cv2.IMREAD_COLOR:
        return cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR) if is_gray else np.ascontiguousarray(found[..., 2::-1])
    return gray if is_gray else cv2.cvtColor(np.ascontiguousarray(found[..., :3]), cv2.COLOR_RGB2GRAY)


def image_kind(path: str | os.PathLike) -> str | None:
    """The kind of an image file by its first bytes ('jpg', 'png', 'tiff', ...); None where it is no image."""
    if not os.path.isfile(path):  # a pipe, which may never end
        return None
    try:
        with _damage_named(), open(path, "rb") as file, pixels.identify(file) as image:
            return _kind(image.format)
    except (OSError, ValueError):
        return "tiff" if _starts_as_tiff(path) else None


def is_image(path: str | os.PathLike) -> bool:
    """Whether the first bytes of a file are those of an image; its pixels are not checked."""
    return image_kind(path) is not None


def is_whole(path: str | os.PathLike) -> bool:
    """Whether an image file of any size exists with all its pixels, which are not kept."""
    try:
        data = Path(path).read_bytes()
        if data.startswith(png.SIGNATURE):
            return png.is_whole(data)
        if data.startswith(jpeg.SIGNATURE):
            return jpeg.ends(data)
        with pixels.identify(io.BytesIO(data)) as image:
            image.load()
        return True
    except Exception:  # as in _damage_named
        return False


def content_of(path: str | os.PathLike) -> bytes:
    """Read an image file that is no device or pipe.

    Raises:
        UnreadableImage: it is a device or a pipe, which may never end; or it is larger than most photos, and its first
            bytes are not those of an image.
        OSError, ValueError: as `open`.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UnreadableImage("it is a device or a pipe, not a file")
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(0)
        if os.fstat(file.fileno()).st_size > _LARGE and not start.startswith(_REPAIRED):
            with _damage_named(), pixels.identify(file):
                file.seek(0)
        return file.read()


def read_once(path: str | os.PathLike) -> bytes:
    """`content_of` a file; raises UnreadableImage wherever that is not possible."""
    try:
        return content_of(path)
    except (OSError, ValueError) as error:  # a name with a NUL
        raise UnreadableImage(getattr(error, "strerror", None) or str(error)) from error


def printable(text: str) -> str:
    """`text` on one line that any terminal and log can show: names of files may have line breaks and broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class _Decoded(NamedTuple):
    """pixels: (H, W, 1 to 4) uint8, uint16, or float32, upright: gray or RGB, then alpha where the file has it."""

    pixels: np.ndarray
    is_gray: bool
    icc_profile: bytes | None
    metadata: Metadata
    kind: str
    frames: int = 1
    color_chunks: png.Chunks = ()


def _photo(decoded: _Decoded) -> Photo:
    levels = decoded.pixels
    scaled = levels if levels.dtype == np.float32 else np.divide(levels, np.iinfo(levels.dtype).max, dtype=np.float32)
    colors = 1 if decoded.is_gray else 3
    return Photo(
        rgb=scaled[..., :1].repeat(3, axis=2) if decoded.is_gray else np.ascontiguousarray(scaled[..., :3]),
        alpha=np.ascontiguousarray(scaled[..., colors]) if scaled.shape[2] > colors else None,
        bit_depth=8 * levels.itemsize,
        is_gray=decoded.is_gray,
        icc_profile=decoded.icc_profile,
        metadata=decoded.metadata,
        color_chunks=decoded.color_chunks,
        kind=decoded.kind,
        frames=decoded.frames,
    )


def _of_file(path: str | os.PathLike, read: Callable[[bytes], _T]) -> _T:
    """Call `read` with a file's content; an UnreadableImage names the file."""
    return _named(path, lambda: read(read_once(path)))


def _named(source: bytes | str | os.PathLike, read: Callable[[], _T]) -> _T:
    """Call `read`; an UnreadableImage that it raises names the source, if that is a path."""
    try:
        return read()
    except UnreadableImage as error:
        if isinstance(source, bytes):
            raise
        raise UnreadableImage(f"{source}: {error}") from error


def _decode(data: bytes, max_pixels: int) -> _Decoded:
    if not data:
        raise UnreadableImage("it is empty (0 bytes)")
    with _damage_named():
        if data.startswith(png.SIGNATURE):
            found = png.essential(data)
            decoded = _decode_whole(found.data, max_pixels, found.profile)
            metadata = decoded.metadata._replace(xmp=found.xmp, text=found.text)
            return decoded._replace(metadata=metadata, frames=found.frames, color_chunks=found.color)
        if data.startswith(jpeg.SIGNATURE) and not jpeg.ends(data):
            data = jpeg.ended(data, lambda one: _decode_whole(one, max_pixels).pixels)
        return _decode_whole(data, max_pixels)


class _damage_named:
    """Turn any error about a file's content into an UnreadableImage that says what is wrong with it."""

    def __enter__(self) -> None:
        # pyiqa switches this on for the whole process; half a photo must not pass for a photo.
        ImageFile.LOAD_TRUNCATED_IMAGES = False

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # What Pillow's parsers raise on arbitrary bytes has no common base.
        if not isinstance(error, Exception) or isinstance(error, UnreadableImage):
            return
        if isinstance(error, MemoryError):
            raise UnreadableImage("it is too large for this machine's memory") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        damage = "truncated" if "truncated" in reason.lower() else "damaged"
        raise UnreadableImage(f"it is {damage} ({reason})") from error


def _decode_whole(data: bytes, max_pixels: int, profile: bytes | None = None) -> _Decoded:
    try:
        image = pixels.identify(io.BytesIO(data))
    except UnreadableImage:
        if not data.startswith(pixels.TIFF_STARTS):
            raise
        return _decode_deep_tiff(data, max_pixels)
    with image:
        _check_size(image.width, image.height, max_pixels)
        image.load()
        decoded = _decode_loaded(image, data, profile)
        return decoded._replace(frames=_count(image))


def _decode_loaded(image: Image.Image, data: bytes, profile: bytes | None) -> _Decoded:
    found, is_gray, profile = pixels.channels(image, data, profile or image.info.get("icc_profile"))
    return _Decoded(
        pixels.upright(found, _orientation(image)), is_gray, profile, metadata_of(image, data), _kind(image.format)
    )


def _decode_deep_tiff(data: bytes, max_pixels: int) -> _Decoded:
    """Decode a TIFF file of 32 bits per channel, which Pillow does not know."""
    try:
        tags = pixels.tiff_tags(data)
        size = pixels.tiff_size(tags)
    except Exception as error:  # as in _damage_named
        raise UnreadableImage("it is not an image of a known kind, or damaged at its start") from error
    _check_size(*size, max_pixels)
    found, is_gray = pixels.decode_by_opencv(data, 32)
    profile = pixels.tiff_bytes(tags, TiffImagePlugin.ICCPROFILE)
    if profile is not None and profile[16:20] != (b"GRAY" if is_gray else b"RGB "):
        profile = None
    return _Decoded(found, is_gray, profile, metadata_of_deep_tiff(data, tags), "tiff")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableImage(
            f"it is too large: {width}x{height} are {width * height} pixels, more than {max_pixels}; cut it into parts "
            "first, or raise max_pixels (--max-pixels of upscale)"
        )


def _frames(data: bytes, first: Photo, max_pixels: int) -> Iterator[Frame]:
    if first.frames == 1:
        yield Frame(first, None, None, False)
        return
    with _damage_named():
        if data.startswith(png.SIGNATURE):
            data = png.essential(data, animated=True).data
        with pixels.identify(io.BytesIO(data)) as image:
            is_document = image.format == "TIFF"
            deep = first.bit_depth > 8 and is_document
            for index, page in enumerate(ImageSequence.Iterator(image)):
                _check_size(page.width, page.height, max_pixels)
                page.load()
                photo = first
                if index > 0:
                    content = _page(data, index) if deep else data
                    decoded = _decode_loaded(page, content, first.icc_profile)
                    photo = _photo(decoded._replace(frames=first.frames, color_chunks=first.color_chunks))
                    photo = photo if is_document else photo._replace(metadata=first.metadata)
                duration = None if is_document else float(page.info.get("duration") or 0)
                cover = index == 0 and bool(image.info.get("default_image"))
                yield Frame(photo, duration, image.info.get("loop"), cover)


def _page(data: bytes, index: int) -> bytes:
    """A page of over 8 bits per channel as a file of its own."""
    found, pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if not found or index >= len(pages):
        raise UnreadableImage(f"page {index + 1} cannot be read")
    return cv2.imencode(".png", pages[index])[1].tobytes()


def _count(image: Image.Image) -> int:
    """The number of frames or pages of a loaded image; 2 where those after the first cannot be counted."""
    try:
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception:  # as in _damage_named; the first frame is whole
        return 2


def _kind(form: str | None) -> str:
    return _KINDS.get(form or "", (form or "").lower())


def _starts_as_tiff(path: str | os.PathLike) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) in pixels.TIFF_STARTS
    except (OSError, ValueError):
        return False


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that is not applied yet; both decoders apply that of TIFF themselves."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in _damage_named; broken metadata does not spoil the pixels
        return 1
