"""Maps of what was read from a photo and what was invented, as pictures with a scale (ITER, arXiv:2312.05616)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

# Height of the scale, of its letters, and the longest side of a map.
SCALE_HEIGHT, FONT_SCALE = 44, 0.5


class Map(NamedTuple):
    """values: (H, W) float, over the restored photo. high: the value of the brightest color; 0 is the darkest.
    caption: what they are."""

    values: np.ndarray
    high: float
    caption: str


def spread(tokens: np.ndarray, shown: tuple[int, int], whole: tuple[int, int], factor: int) -> np.ndarray:
    """Values of tokens, brought to a picture.

    Args:
        tokens: (h, w), of the padded photo.
        shown: (height, width) of the picture, which shows the whole photo.
        whole: (height, width) of the photo.
        factor: pixels of the photo that a token's side has.

    Returns:
        (height, width), of the dtype of ``tokens``.
    """
    rows, columns = (np.arange(small) * side // small // factor for small, side in zip(shown, whole, strict=True))
    return tokens[rows[:, None], columns]


def draw(one: Map) -> np.ndarray:
    """A map and its scale below it: (H + SCALE_HEIGHT, W, 3) uint8."""
    high = one.high or 1.0
    return np.vstack([_colored(one.values / high), _scale(one.values.shape[1], high)])


def _colored(values: np.ndarray) -> np.ndarray:
    levels = np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_MAGMA), cv2.COLOR_BGR2RGB)


def _scale(width: int, high: float) -> np.ndarray:
    """The colors from left to right, with numbers below them."""
    picture = np.full((SCALE_HEIGHT, width, 3), 255, np.uint8)
    picture[6:20] = _colored(np.linspace(0, 1, width)[None]).repeat(14, axis=0)
    texts = [f"{high * part:.3g}" for part in (0, 0.5, 1)]
    for part, text in zip((0, 0.5, 1), texts, strict=True):
        (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, 1)
        left = round(part * (width - length - 4)) + 2
        cv2.putText(picture, text, (left, 38), cv2.FONT_HERSHEY_SIMPLEX, FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
