"""Pictures of the steps of Algorithm 2 (ITER, arXiv:2312.05616): what each step keeps, and what it draws next."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from iter_model.photo.maps import Redrawn, spread

# The color that lies over masked tokens in a frame, and its share.
VEIL, SHARE = np.array([40.0, 70.0, 255.0]), 0.55
MILLISECONDS, LAST_MILLISECONDS = 700, 2500


class Step(NamedTuple):
    """The state of one image before step ``t``; ``t`` = 0 is the result.

    tokens: (1, h, w) int64, meaningless where they are masked.
    kept: (h, w) bool, False = masked.
    """

    t: int
    tokens: Tensor
    kept: np.ndarray

    @property
    def caption(self) -> str:
        """What the step shows, in words."""
        share = f"{self.kept.mean():.0%} of the tokens kept"
        return f"Step {self.t} to come: {share}" if self.t else "Result: all tokens kept"


class Film:
    """Records the steps of one image; an `on_step` for `ITER.restore`. redrawn: counts them for every token."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.redrawn = Redrawn()

    def __call__(self, t: int, tokens: Tensor, mask: Tensor) -> None:
        """tokens (1, h, w) int64, mask (1, h, w) bool, True = kept."""
        if self.steps and t >= self.steps[-1].t:  # ran out of memory, and starts again
            self.steps.clear()
        self.redrawn(t, tokens, mask)
        self.steps.append(Step(t, tokens.clone(), mask[0].cpu().numpy().copy()))


def frame(picture: np.ndarray, size: tuple[int, int], kept: np.ndarray, factor: int) -> np.ndarray:
    """A picture with a veil over masked tokens.

    Args:
        picture: (H', W', 3) uint8, shows a restored photo.
        size: (H, W) of the photo itself.
        kept: (h, w) bool, of its tokens, padding included.
        factor: pixels of a token's side.

    Returns:
        (H', W', 3) uint8.
    """
    masked = ~spread(kept, picture.shape[:2], size, factor)
    return np.where(masked[..., None], (1 - SHARE) * picture + SHARE * VEIL, picture).astype(np.uint8)


def write_film(path: Path, frames: list[np.ndarray]) -> Path:
    """Write frames of one size as an endless animation, a WebP file; returns the path."""
    images = [Image.fromarray(one) for one in frames]
    durations = [MILLISECONDS] * (len(images) - 1) + [LAST_MILLISECONDS]
    images[0].save(path, "WEBP", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=90)
    return path
