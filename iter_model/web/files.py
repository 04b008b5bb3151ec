"""The files of the page of `basicsr web`: uploaded photos, previews, and results to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from basicsr_compat.images import Photo, read_photo
from iter_model.photo.folders import AUTO
from iter_model.photo.levels import picture_of
from iter_model.photo.metadata import corrected
from iter_model.photo.writer import write_photo

# Most bytes of an upload.
MAX_BYTES = 100_000_000
# Longest side of a preview in pixels; the file to download has all pixels.
PREVIEW_SIDE = 2048


def read_upload(path: Path, max_pixels: int) -> Photo:
    """Read a photo that a visitor sent. Raises UnreadableImage, whose message does not show the path."""
    return read_photo(path.read_bytes(), max_pixels=max_pixels)


def result_name(name: str, kind: str) -> str:
    """The name of the result of a photo: a file of the photo's kind where possible, else PNG."""
    return f"{Path(name).stem}.{AUTO.get(kind, 'png')}"


def preview_size(photo: Photo, side: int = PREVIEW_SIDE) -> tuple[int, int]:
    """(height, width) of the preview of a photo, no side longer than ``side``."""
    height, width = photo.rgb.shape[:2]
    factor = min(1, side / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def write_picture(path: Path, picture: np.ndarray, icc_profile: bytes | None = None) -> Path:
    """Write a picture (H, W, 3 or 4) uint8 as a PNG file for the browser; returns the path."""
    Image.fromarray(picture).save(path, "PNG", compress_level=1, icc_profile=icc_profile)
    return path


def write_preview(path: Path, photo: Photo, size: tuple[int, int]) -> Path:
    """Write a photo as a PNG file of this (height, width) with its color profile; returns the path."""
    return write_picture(path, picture_of(photo, size), None if photo.is_gray else photo.icc_profile)


def write_result(path: Path, photo: Photo) -> Path:
    """Write the file to download, in the kind of its suffix, with the metadata of the photo; returns the path."""
    shown = photo._replace(metadata=corrected(photo.metadata, photo.rgb.shape[:2]))
    write_photo(path, shown, path.suffix[1:])
    return path
