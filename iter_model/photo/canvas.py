"""Collects a restored photo from top to bottom, resized and rounded row by row, without a float copy of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from basicsr_compat.images import MAX_PIXELS
from iter_model.photo.levels import DEPTHS, quantized

# Rows of the result that are resized at a time.
STRIP_ROWS = 128
# Radius of Pillow's Lanczos filter, in pixels of the coarser of the two images.
LANCZOS_RADIUS = 3

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class OutputSize:
    """The size of results; at most one of ``outscale``, (``width``, ``height``), and ``max_side`` is given.

    outscale: sides of the result over those of the photo; by default the scale of the network.
    width, height: pixels of the result; where only one is given, the result keeps the photo's proportions.
    max_side: longest side in pixels; larger results are reduced to it.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None

    def of(self, size: Size, scale: int) -> Size:
        """(height, width) of the result for a photo of this (height, width) and the scale of the network.

        Raises:
            ValueError: the result would have more pixels than that of the largest photo has without these options.
        """
        height, width = self._wanted(size, scale)
        most = scale**2 * max(MAX_PIXELS, size[0] * size[1])
        if height * width > most:
            raise ValueError(f"its result would have {width}x{height} pixels, more than {most}; ask for fewer")
        return height, width

    def _wanted(self, size: Size, scale: int) -> Size:
        height, width = size
        if self.width:
            return self.height or max(1, round(height * self.width / width)), self.width
        if self.height:
            return self.height, max(1, round(width * self.height / height))
        factor = self.outscale or scale
        if self.max_side:
            factor = min(factor, self.max_side / max(size))
        return max(1, round(height * factor)), max(1, round(width * factor))


class Canvas:
    """Collects rows of an image, (n, W, C) float32 in [0, 1], resized to ``target`` and rounded to ``bits`` bits.

    source, target: (height, width). bits: one of `DEPTHS`.
    pixels: (target height, target width, C), complete after the last row of the source.
    """

    def __init__(self, source: Size, target: Size, channels: int, bits: int) -> None:
        self.pixels = np.empty((*target, channels), DEPTHS[bits])
        self._bits = bits
        self._resizer = _RowResizer(source, target) if source != target else None
        self._top = 0

    def push(self, rows: np.ndarray) -> None:
        """Add the next rows of the source, (n, W, C) float32 in [0, 1]."""
        for finished in self._resizer.push(rows) if self._resizer else (rows,):
            self.pixels[self._top : self._top + len(finished)] = quantized(finished, self._bits)
            self._top += len(finished)


class _RowResizer:
    """Pillow's Lanczos filter on an image that comes in rows; the result equals that of the whole image."""

    def __init__(self, source: Size, target: Size) -> None:
        self.source, self.target = source, target
        self.ratio = source[0] / target[0]
        self.reach = int(np.ceil(LANCZOS_RADIUS * max(1, self.ratio))) + 1
        self.top = self.done = 0
        self.held = np.empty((0, 0, 0), np.float32)

    def push(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Take the next rows of the source, and yield those of the target that do not depend on later ones."""
        self.held = np.concatenate([self.held, rows]) if len(self.held) else rows
        seen = self.top + len(self.held)
        ready = self.target[0] if seen == self.source[0] else int((seen - self.reach) / self.ratio)
        while self.done < min(ready, self.target[0]):
            last = min(self.done + STRIP_ROWS, ready, self.target[0])
            yield self._resized(self.done, last)
            self.done = last
        drop = min(int(self.done * self.ratio) - self.reach - self.top, len(self.held) - 1)
        if drop > 0:
            self.held, self.top = self.held[drop:].copy(), self.top + drop

    def _resized(self, first: int, last: int) -> np.ndarray:
        width = self.held.shape[1]
        bottom = min((last * self.ratio) - self.top, len(self.held))
        box = (0, first * self.ratio - self.top, width, bottom)
        channels = [
            np.asarray(Image.fromarray(plane).resize((self.target[1], last - first), Image.Resampling.LANCZOS, box))
            for plane in np.ascontiguousarray(self.held.transpose(2, 0, 1))
        ]
        return np.stack(channels, axis=2)
