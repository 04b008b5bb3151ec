"""Decodes the pixels of image files, by Pillow, or by OpenCV where a channel has over 8 bits."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, ImageCms, PpmImagePlugin, TiffImagePlugin

from basicsr_compat.image_files.errors import UnreadableImage

# Closed list: Pillow would also try formats that start other programs (EPS) or that hold no photos.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_GRAY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I", "F")
# Of the values of a float file, the share that may lie above 1 before it is taken for one of another range.
_MOST_ABOVE_ONE = 0.01


def identify(file: IO[bytes]) -> Image.Image:
    """Image.open without Pillow's global limit of pixels, and without its warning at half of that.

    Raises:
        UnreadableImage: the file has none of the `FORMATS`.
    """
    Image.init()
    start = file.read(32)
    if start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS:
        return _heif(file)
    factories = [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]
    if _is_targa(file):
        factories.append(Image.OPEN["TGA"])
    for factory, accepts in factories:
        accepted = accepts is None or accepts(start[:16])
        if accepted and not isinstance(accepted, str):  # a string says which library Pillow was built without
            file.seek(0)
            with contextlib.suppress(Exception):  # what Pillow's parsers raise on arbitrary bytes has no common base
                return factory(file, "")
    raise UnreadableImage(f"it is not an image of a known kind ({', '.join(FORMATS)}, TGA), or damaged at its start")


def channels(image: Image.Image, data: bytes, profile: bytes | None) -> tuple[np.ndarray, bool, bytes | None]:
    """The pixels of a loaded image.

    Args:
        image: from `identify`, loaded.
        data: the content of its file.
        profile: its color profile, or None.

    Returns:
        The pixels, (H, W, 1 to 4) uint8, uint16, or float32, gray or RGB, then alpha if any; whether they are gray; the
        color profile of the pixels, None where they are sRGB or nothing is known.
    """
    bits, space = _bits(image, data), bytes(profile[16:20]) if profile else b""
    if image.mode in ("CMYK", "LAB"):
        return np.asarray(_to_srgb(image, profile if space in (b"CMYK", b"Lab ") else None)), False, None
    if bits > 8:
        pixels, is_gray = decode_by_opencv(data, bits)
        return pixels, is_gray, profile if space == (b"GRAY" if is_gray else b"RGB ") else None
    is_gray = image.mode in _GRAY_MODES
    has_alpha = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    pixels = np.atleast_3d(np.asarray(image.convert(("L" if is_gray else "RGB") + ("A" if has_alpha else ""))))
    if profile is None or space == (b"GRAY" if is_gray else b"RGB "):
        return pixels, is_gray, profile
    return _through_other_profile(pixels, is_gray, profile, space), is_gray, None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array (H, W, C) upright that has an EXIF orientation; unknown values change nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def decode_by_opencv(data: bytes, bits: int = 16) -> tuple[np.ndarray, bool]:
    """The pixels of a file of over 8 bits per channel, and whether they are gray; see `channels`."""
    with _quiet_opencv():
        found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    pixels: np.ndarray = np.empty(0, np.uint8) if found is None else np.asarray(found)
    if pixels.dtype in (np.float32, np.float64):
        pixels = _unit_range(pixels)
    elif pixels.dtype == np.uint32:
        pixels = (pixels >> 16).astype(np.uint16)
    elif pixels.dtype != np.uint16:
        raise UnreadableImage(
            f"{bits} bits per channel of this kind cannot be read; save it with 8 or 16 bits per channel"
        )
    if pixels.ndim == 2:
        return pixels[..., None], True
    if data.startswith(b"\x89PNG") and data[25] == 4:  # gray with alpha: OpenCV repeats the gray
        return pixels[..., 2:], True
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB), False


def tiff_tags(data: bytes) -> dict[int, Any]:
    """The tags of the first page of a TIFF file with 32-bit colors, which Pillow does not identify."""
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return dict(directory)


def tiff_size(tags: dict[int, Any]) -> tuple[int, int]:
    """Width and height of `tiff_tags`."""
    return tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]


def tiff_bytes(tags: dict[int, Any], tag: int) -> bytes | None:
    """A value of `tiff_tags` that should be bytes; None where it is missing or has another type."""
    value = tags.get(tag)
    return value if isinstance(value, bytes) else None


def _heif(file: IO[bytes]) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnreadableImage("it is a HEIC file, which needs another package: pip install pillow-heif") from None
    file.seek(0)
    return HeifImageFile(file, "")


def _is_targa(file: IO[bytes]) -> bool:
    """Whether a file ends like a TGA file; such files have no signature at the start."""
    footer = b"TRUEVISION-XFILE.\0"
    if file.seek(0, io.SEEK_END) < 18 + len(footer):
        return False
    file.seek(-len(footer), io.SEEK_END)
    return file.read() == footer


def _bits(image: Image.Image, data: bytes) -> int:
    """Bits per channel."""
    if image.format == "PNG":
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.tile and isinstance(image.tile[0].args, tuple):
        return 16 if image.tile[0].args[-1] > 255 else 8
    return 16 if image.mode[0] in "IF" else 8


def _unit_range(pixels: np.ndarray) -> np.ndarray:
    """Floats in [0, 1]: highlights above are clipped, and a file of another range is refused."""
    pixels = np.nan_to_num(pixels.astype(np.float32), copy=False, nan=0, posinf=1, neginf=0)
    if (pixels > 1).mean() > _MOST_ABOVE_ONE:
        raise UnreadableImage(
            f"its floats reach {pixels.max():g} and must be in [0, 1]; save it with 16 bits per channel"
        )
    return pixels.clip(0, 1, out=pixels)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of CMYK or Lab to RGB, through its profile where that is usable."""
    target = ImageCms.createProfile("sRGB")
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        if image.mode == "LAB":
            lab = ImageCms.createProfile("LAB")
            return ImageCms.buildTransform(lab, target, "LAB", "RGB").apply(image)
        if profile is not None:
            return _transformed(image, profile)
    return image.convert("RGB")


def _transformed(image: Image.Image, profile: bytes) -> Image.Image:
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        image.mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    return transform.apply(image)


def _through_other_profile(pixels: np.ndarray, is_gray: bool, profile: bytes, space: bytes) -> np.ndarray:
    """Convert gray pixels, of one channel or of equal ones, to sRGB through a profile that was made for the other kind.

    Colors with a profile for gray keep their values, as in viewers.
    """
    colors = 1 if is_gray else 3
    if space != (b"RGB " if is_gray else b"GRAY") or (pixels[..., :1] != pixels[..., :colors]).any():
        return pixels
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    try:
        levels = np.asarray(_transformed(ramp.convert("RGB") if is_gray else ramp, profile))[0, :, 1]
    except (ImageCms.PyCMSError, OSError, ValueError):
        return pixels
    if np.abs(levels.astype(int) - np.arange(256)).max() <= 1:  # sRGB's own curve
        return pixels
    return np.concatenate([levels[pixels[..., :colors]], pixels[..., colors:]], axis=2)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing about a file, because the reader reports what is wrong."""
    logging = getattr(cv2.utils, "logging", None)
    if logging is None:
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
