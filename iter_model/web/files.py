"""The files of the page of `basicsr web`: a photo in, a picture to look at, the result to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from basicsr_compat.images import Photo, read_photo
from iter_model.photo.folders import AUTO
from iter_model.photo.levels import picture_of
from iter_model.photo.metadata import corrected
from iter_model.photo.writer import write_photo

# Of an upload.
MAX_BYTES = 100_000_000
# Longest side of a picture to look at; the file to download has all pixels.
PREVIEW_SIDE = 2048


def read_upload(path: Path, max_pixels: int) -> Photo:
    """A photo that a visitor sent; UnreadableImage says what is wrong with it, and not where it lies."""
    return read_photo(path.read_bytes(), max_pixels=max_pixels)


def result_name(name: str, kind: str) -> str:
    """What the result of a photo is called: a file of the photo's kind where one can be written, or else PNG."""
    return f"{Path(name).stem}.{AUTO.get(kind, 'png')}"


def preview_size(photo: Photo, side: int = PREVIEW_SIDE) -> tuple[int, int]:
    """(height, width) of a photo as it is shown, no side longer than ``side``."""
    height, width = photo.rgb.shape[:2]
    factor = min(1, side / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def write_picture(path: Path, picture: np.ndarray, icc_profile: bytes | None = None) -> Path:
    """A picture (H, W, 3 or 4) uint8 as a PNG file for the browser."""
    Image.fromarray(picture).save(path, "PNG", compress_level=1, icc_profile=icc_profile)
    return path


def write_preview(path: Path, photo: Photo, size: tuple[int, int]) -> Path:
    """A photo as a PNG file of this size (height, width), with its color profile."""
    return write_picture(path, picture_of(photo, size), None if photo.is_gray else photo.icc_profile)


def write_result(path: Path, photo: Photo) -> Path:
    """The file to download, of the kind that its suffix says, with the metadata of the photo."""
    shown = photo._replace(metadata=corrected(photo.metadata, photo.rgb.shape[:2]))
    write_photo(path, shown, path.suffix[1:])
    return path
