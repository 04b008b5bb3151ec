"""Maps that show what was restored and what was invented, with scales (ITER, arXiv:2312.05616)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from iter_arch import Restored, Uncertainty
from iter_arch.tokenizer import Tokenizer

# Pixels: width of a panel, and sizes of what surrounds it, which grow with wider panels.
WIDTH = 360
MARGIN, LINE, BAR, LETTERS = 12, 22, 14, 14
# Largest height of a panel over its width.
TALLEST = 2

Size = tuple[int, int]


class Redrawn:
    """Counts how often each token of one image is drawn; an `on_step` for `ITER.restore`. times: (h, w) int."""

    def __init__(self) -> None:
        self.times = np.zeros((1, 1), int)
        self._last = 0

    def __call__(self, t: int, tokens: Tensor, mask: Tensor) -> None:
        """mask: (1, h, w) bool, True = kept before step ``t``."""
        masked = (~mask[0]).cpu().numpy().astype(int) * (t > 0)
        # A restoration that ran out of memory starts again.
        self.times = masked if t >= self._last else self.times + masked
        self._last = t


class Panel(NamedTuple):
    """A map (h, w) with a scale from 0 to ``high``, or a picture (h, w, 3) uint8 without a scale.

    title, note: the text above and below it.
    """

    title: str
    values: np.ndarray
    high: float = 1.0
    note: str = ""


def panel_size(size: Sequence[int], width: int = WIDTH) -> Size:
    """(height, width) of a panel that shows an image of this (height, width)."""
    factor = min(width / size[1], TALLEST * width / size[0])
    return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def panels_of(
    found: Uncertainty, restored: Restored, times: np.ndarray, *, vqgan: Tokenizer, samples: int, shown: Size
) -> list[Panel]:
    """The maps of one image.

    Args:
        found: the uncertainty of the image.
        restored: its result.
        times: (h, w), how often each token of the result was drawn.
        vqgan: the tokenizer of the network.
        samples: the number of results that ``found`` compares.
        shown: (height, width) of the maps, see `panel_size`.
    """
    std = 255 * found.std[0, 0].float().cpu().numpy()
    how = cv2.INTER_AREA if shown[1] < std.shape[1] else cv2.INTER_NEAREST
    whole, steps = std.shape, int(restored.start_step)

    def on_picture(tokens: Tensor | np.ndarray) -> np.ndarray:
        values = tokens.float().cpu().numpy() if isinstance(tokens, Tensor) else tokens
        return spread(values, shown, whole, vqgan.factor)

    high = max(1.0, float(np.quantile(std, 0.99)))
    std = cv2.resize(std, shown[::-1], interpolation=how)
    return [
        Panel(f"invented: std of {samples} results", std, high, "levels of 255"),
        Panel("entropy of phi_r", on_picture(found.entropy[0, 0]), math.log(vqgan.num_codes), "nats"),
        Panel("p_e(good) of S_l", on_picture(restored.good[0]), 1, "1: kept as it is"),
        Panel("times redrawn", on_picture(times), max(1, steps), f"of {steps} steps"),
    ]


def spread(tokens: np.ndarray, shown: Size, whole: Size, factor: int) -> np.ndarray:
    """Enlarge a map of tokens to a picture, by the nearest token.

    Args:
        tokens: (h, w), of the padded photo.
        shown: (height, width) of the picture, which shows the whole photo.
        whole: (height, width) of the photo.
        factor: pixels of the photo per side of a token.

    Returns:
        (height, width), of the dtype of ``tokens``.
    """
    rows, columns = (np.arange(small) * side // small // factor for small, side in zip(shown, whole, strict=True))
    return tokens[rows[:, None], columns]


def draw(panels: list[Panel], width: int = WIDTH) -> Image.Image:
    """Draw panels of one size, no wider than ``width`` pixels, side by side."""
    margin, line, bar, letters = (round(x * width / WIDTH) for x in (MARGIN, LINE, BAR, LETTERS))
    height = panels[0].values.shape[0]
    whole = (len(panels) * (width + margin) + margin, height + 3 * line + bar + 2 * margin)
    picture = Image.new("RGB", whole, "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(letters)
    ramp = Image.fromarray(colors(np.tile(np.linspace(0, 1, width, dtype=np.float32), (bar, 1))))
    for index, panel in enumerate(panels):
        left, top = margin + index * (width + margin), margin
        pen.text((left, top), panel.title, "black", font)
        is_map = panel.values.ndim == 2
        pixels = colors(panel.values / panel.high) if is_map else panel.values
        picture.paste(Image.fromarray(pixels), (left, top + line))
        bottom = top + line + height + margin // 2
        if is_map:
            picture.paste(ramp, (left, bottom))
            pen.text((left, bottom + bar + 2), "0", "black", font)
            pen.text((left + width, bottom + bar + 2), f"{panel.high:.3g}", "black", font, anchor="ra")
        pen.text((left + width // 2, bottom + bar + 2), panel.note, "black", font, anchor="ma")
    return picture


def colors(x: np.ndarray) -> np.ndarray:
    """Colors of values (h, w), which are clamped to [0, 1] -> (h, w, 3) uint8 RGB, from dark violet to yellow."""
    return cv2.applyColorMap(np.rint(255 * x.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
