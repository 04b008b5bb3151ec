"""Find photos that are too bad for ground truth: tiny, blurred, mostly flat, or with visible JPEG blocks."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import cv2
import numpy as np

_SHARP_TILE, _SHARPEST = 64, 0.9  # a background out of focus does not make a photo blurred: the sharpest tiles count
_FLAT_TILE, _FLAT = 16, 2  # a tile is flat below this standard deviation
_JPEG_BLOCK = 8


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What `measure` finds; the last three are measured on the gray image in [0, 255].

    height, width: pixels.
    sharpness: the variance of the Laplacian that 90% of the 64x64 tiles stay below.
    flatness: share of 16x16 tiles with a standard deviation below 2.
    blocking: mean step between neighbors at the borders of 8x8 blocks over the median step elsewhere, in the direction
        where this ratio is smaller; about 1 without blocks. In a cropped photo the blocks may start at any pixel.
    """

    height: int
    width: int
    sharpness: float
    flatness: float
    blocking: float


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds of `Measures` for a good photo; docs/datasets.md has the measurements behind the defaults."""

    min_size: int = 256
    min_sharpness: float = 100
    max_flatness: float = 0.75
    max_blocking: float = 1.4

    def reasons(self, found: Measures) -> Iterator[str]:
        """Say why a photo is not good enough: any of tiny, blurred, flat, and blocked."""
        if min(found.height, found.width) < self.min_size:
            yield "tiny"
        if found.sharpness < self.min_sharpness:
            yield "blurred"
        if found.flatness > self.max_flatness:
            yield "flat"
        if found.blocking > self.max_blocking:
            yield "blocked"


def measure(image: np.ndarray) -> Measures:
    """Measure a photo, (h, w, 3) uint8 BGR."""
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    laplacian = _tiles(cv2.Laplacian(gray, cv2.CV_32F), _SHARP_TILE)
    return Measures(
        height=gray.shape[0],
        width=gray.shape[1],
        sharpness=float(np.quantile(laplacian.var((1, 3)), _SHARPEST)),
        flatness=float((_tiles(gray, _FLAT_TILE).std((1, 3)) < _FLAT).mean()),
        blocking=min(_blocking(gray), _blocking(gray.T)),
    )


def _tiles(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w) -> (rows, side, columns, side), without what is left over; an image smaller than a tile is one tile."""
    tile = [min(side, length) for length in image.shape]
    rows, columns = (length // one for length, one in zip(image.shape, tile, strict=True))
    return image[: rows * tile[0], : columns * tile[1]].reshape(rows, tile[0], columns, tile[1])


def _blocking(gray: np.ndarray) -> float:
    steps = np.abs(np.diff(gray, axis=1)).mean(0)
    if len(steps) < 2 * _JPEG_BLOCK:
        return 1.0
    by_phase = steps[: len(steps) // _JPEG_BLOCK * _JPEG_BLOCK].reshape(-1, _JPEG_BLOCK).mean(0)
    return float((by_phase.max() + 1e-3) / (np.median(by_phase) + 1e-3))


def report(rows: dict[str, tuple[Measures, list[str]]]) -> str:
    """A CSV table of photos: name, measures, and the reasons for dropping them, none where they were kept."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", *Measures.__dataclass_fields__, "dropped"])
    for name, (found, reasons) in rows.items():
        values = [value if isinstance(value, int) else f"{value:.3f}" for value in asdict(found).values()]
        writer.writerow([name, *values, " ".join(reasons)])
    return text.getvalue()
