"""One reader of image files for training, test and upscale, and one error for those that cannot be used."""

from __future__ import annotations

import os

# A file of a few MB may hold the 2^30 pixels that OpenCV allows, 12 GB as float32; this, read by `import cv2`, is
# Pillow's limit.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2 * 89_478_485))

import cv2  # noqa: E402
import numpy as np  # noqa: E402


def printable(text: str) -> str:
    """`text` on one line that any terminal and log can show: a file may be called by line breaks and broken UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message says why."""


def decode_image(data: bytes | None, flags: int = cv2.IMREAD_COLOR) -> np.ndarray:
    """Decode a whole image file.

    Args:
        data: the file's content; None where there is no such file in an LMDB.
        flags: OpenCV's; by default the result is (h, w, 3) uint8 BGR, its EXIF orientation applied.

    Raises:
        UnreadableImage: no image, not all of it, or one of too many pixels (OPENCV_IO_MAX_IMAGE_PIXELS).
    """
    if not data:
        raise UnreadableImage("it is empty")
    if _is_truncated(data):
        raise UnreadableImage("it is truncated")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        reason = " ".join(str(error.err).split())
        raise UnreadableImage(f"OpenCV cannot decode it ({reason})") from error
    except MemoryError as error:
        raise UnreadableImage("it is too large for this machine's memory") from error
    if image is None:
        raise UnreadableImage("it is not an image that OpenCV can decode, or damaged")
    return image


def _is_truncated(data: bytes) -> bool:
    """OpenCV before 5 fills what a truncated file lacks with gray, and succeeds."""
    if data.startswith(b"\xff\xd8"):
        # the end marker must follow the last scan: an embedded thumbnail has markers of its own before it
        return data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    return data.startswith(b"\x89PNG") and b"IEND" not in data
