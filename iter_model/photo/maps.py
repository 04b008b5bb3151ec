"""What was restored and what was invented, as one picture with scales (ITER, arXiv:2312.05616)."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Width of a panel in pixels: smaller maps are enlarged, larger ones reduced.
WIDTH = 360
MARGIN, LINE, BAR = 12, 22, 14


class Panel(NamedTuple):
    """A map (h, w) with the values that its scale begins and ends with, or a photo (h, w, 3) in [0, 1] without one.

    title, note: above and below it.
    """

    title: str
    values: np.ndarray
    low: float = 0.0
    high: float = 1.0
    note: str = ""


def draw(panels: list[Panel]) -> Image.Image:
    """The panels side by side."""
    height = round(WIDTH * panels[0].values.shape[0] / panels[0].values.shape[1])
    whole = (len(panels) * (WIDTH + MARGIN) + MARGIN, height + 3 * LINE + BAR + 2 * MARGIN)
    picture = Image.new("RGB", whole, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for index, panel in enumerate(panels):
        left, top = MARGIN + index * (WIDTH + MARGIN), MARGIN
        pen.text((left, top), panel.title, "black", font)
        picture.paste(Image.fromarray(_pixels(panel, height)), (left, top + LINE))
        bottom = top + LINE + height + 6
        if panel.values.ndim == 2:
            ramp = np.tile(np.linspace(0, 1, WIDTH, dtype=np.float32), (BAR, 1))
            picture.paste(Image.fromarray(colors(ramp)), (left, bottom))
            pen.text((left, bottom + BAR + 2), f"{panel.low:.3g}", "black", font)
            pen.text((left + WIDTH, bottom + BAR + 2), f"{panel.high:.3g}", "black", font, anchor="ra")
        pen.text((left + WIDTH // 2, bottom + BAR + 2), panel.note, "black", font, anchor="ma")
    return picture


def _pixels(panel: Panel, height: int) -> np.ndarray:
    smaller = panel.values.shape[1] > WIDTH
    is_map = panel.values.ndim == 2
    how = cv2.INTER_AREA if smaller else cv2.INTER_NEAREST if is_map else cv2.INTER_LINEAR
    values = cv2.resize(panel.values.astype(np.float32), (WIDTH, height), interpolation=how)
    if is_map:
        return colors((values - panel.low) / max(panel.high - panel.low, 1e-9))
    return np.rint(255 * values.clip(0, 1)).astype(np.uint8)


def colors(x: np.ndarray, colormap: int = cv2.COLORMAP_VIRIDIS) -> np.ndarray:
    """(h, w), clamped to [0, 1], in one of OpenCV's colormaps -> (h, w, 3) uint8 RGB."""
    return cv2.applyColorMap(np.rint(255 * x.clip(0, 1)).astype(np.uint8), colormap)[..., ::-1].copy()
