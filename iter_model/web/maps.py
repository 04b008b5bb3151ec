"""Maps of what was read from a photo and what was invented, as pictures with a scale (ITER, arXiv:2312.05616)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from iter_model.photo.maps import colors

# Height and width of a scale before it is enlarged to its map.
SCALE = 42, 384


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
    """A map below its scale: (H + h, W, 3) uint8."""
    high = one.high or 1.0
    return np.vstack([_scale(one.values.shape[1], high), colors(one.values / high, cv2.COLORMAP_MAGMA)])


def _scale(width: int, high: float) -> np.ndarray:
    """The colors from left to right, with numbers above them; letters grow with the picture."""
    height, side = SCALE
    picture = np.full((height, side, 3), 255, np.uint8)
    picture[22:38] = colors(np.linspace(0, 1, side)[None], cv2.COLORMAP_MAGMA)
    for part in (0, 0.5, 1):
        text = f"{high * part:.3g}"
        (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        left = round(part * (side - length - 4)) + 2
        cv2.putText(picture, text, (left, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return cv2.resize(picture, (width, max(1, round(height * width / side))), interpolation=cv2.INTER_LINEAR)
