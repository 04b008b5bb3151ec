"""The pixels of a photo in the form that files hold: whole numbers or floats, gray or color, with or without alpha."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

from basicsr_compat.images import Photo

# Bytes of pixels that are converted and compressed at a time.
STRIP_BYTES = 1 << 20
DEPTHS = {8: np.uint8, 16: np.uint16, 32: np.float32}


def quantized(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert values to another depth, clipped and rounded.

    Args:
        values: floats in [0, 1], uint8, or uint16.
        bits: 8 (uint8), 16 (uint16), or 32 (float32 in [0, 1]).
    """
    if values.dtype == DEPTHS[bits]:
        return values.clip(0, 1) if bits == 32 else values
    if values.dtype.kind == "f":
        return np.rint(values.clip(0, 1) * (2**bits - 1)).astype(DEPTHS[bits])
    if bits == 32:
        return values.astype(np.float32) / np.iinfo(values.dtype).max
    return values.astype(np.uint16) * 257 if bits == 16 else ((values + np.uint32(128)) // 257).astype(np.uint8)


def rows_of(photo: Photo, bits: int, rows: slice = slice(None)) -> np.ndarray:
    """Some rows of a photo, (rows, W, 1 to 4) in the dtype of ``bits``, see `quantized`: gray or RGB, then alpha."""
    color = photo.rgb[rows]
    if photo.is_gray:
        # A restored photo has three equal channels, or what they become without color correction.
        color = color.mean(axis=2, keepdims=True) if color.dtype.kind == "f" else color[..., :1]
    color = quantized(color, bits)
    return color if photo.alpha is None else np.dstack([color, quantized(photo.alpha[rows], bits)])


def strips(photo: Photo) -> Iterator[slice]:
    """The rows to convert at a time, from top to bottom."""
    height, width = photo.rgb.shape[:2]
    step = max(1, STRIP_BYTES // (width * 4 * max(1, photo.bit_depth // 8)))
    return (slice(top, min(top + step, height)) for top in range(0, height, step))


def over_white(rows: np.ndarray) -> np.ndarray:
    """Lay gray or RGB with alpha over white: (rows, W, 2 or 4) uint8 -> (rows, W, 1 or 3) uint8."""
    alpha = rows[..., -1:].astype(np.float32) / 255
    return np.rint(rows[..., :-1] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def picture_of(photo: Photo, size: tuple[int, int]) -> np.ndarray:
    """A photo resized to (height, width): (height, width, 3, or 4 with alpha) uint8."""
    channels = [photo.rgb] if photo.alpha is None else [photo.rgb, photo.alpha[..., None]]
    return np.dstack([quantized(_resized(pixels, size), 8) for pixels in channels])


def _resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, c) -> (*size, c)."""
    if pixels.shape[:2] == size:
        return pixels
    method = cv2.INTER_AREA if size[0] < pixels.shape[0] else cv2.INTER_CUBIC
    return np.atleast_3d(cv2.resize(np.ascontiguousarray(pixels), size[::-1], interpolation=method))
