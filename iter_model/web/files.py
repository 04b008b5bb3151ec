"""The files of the page of `basicsr web`: a photo in, a picture to look at, the result to download."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from basicsr_compat.images import Metadata, Photo, read_photo
from iter_model.photo.metadata import corrected
from iter_model.photo.writer import write_photo

# Of an upload.
MAX_BYTES = 100_000_000
# Longest side of a picture to look at; the file to download has all pixels.
PREVIEW_SIDE = 2048


def read_upload(path: Path, max_pixels: int) -> Photo:
    """A photo that a visitor sent; UnreadableImage says what is wrong with it, and not where it lies."""
    return read_photo(path.read_bytes(), max_pixels=max_pixels)


def result_name(name: str) -> str:
    """What the result of a photo of this name is called."""
    return f"{Path(name).stem}.png"


def preview_size(photo: Photo, scale: int = 1) -> tuple[int, int]:
    """(height, width) of a photo of ``scale`` times the size, as it is shown."""
    height, width = (scale * side for side in photo.rgb.shape[:2])
    factor = min(1, PREVIEW_SIDE / max(height, width))
    return max(1, round(factor * height)), max(1, round(factor * width))


def write_preview(path: Path, photo: Photo, size: tuple[int, int]) -> Path:
    """A photo as a PNG file of this size (height, width) for the browser, without its metadata."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] == size:
            return pixels
        smaller = size[0] < pixels.shape[0]
        return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)

    alpha = None if photo.alpha is None else resized(photo.alpha)
    shown = photo._replace(rgb=resized(photo.rgb), alpha=alpha, bit_depth=8, metadata=Metadata())
    write_photo(path, shown, "png")
    return path


def write_result(path: Path, photo: Photo) -> Path:
    """The file to download, of the kind that its suffix says, with the metadata of the photo."""
    shown = photo._replace(metadata=corrected(photo.metadata, photo.rgb.shape[:2]))
    write_photo(path, shown, path.suffix[1:])
    return path
