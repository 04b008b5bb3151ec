"""The color error: whether flat areas have kept the hue of the photo, which PSNR and NIQE hardly notice."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat import register
from iter_arch.color import low_frequencies

# About what the eye sees as the hue of an area.
COLOR_LEVELS = 5


def color_error(image: Tensor, lq: Tensor) -> float:
    """Mean absolute difference between the low frequencies of a result and those of its upsampled LQ.

    Args:
        image: (1, 3, H, W) in [0, 1].
        lq: (1, 3, h, w) in [0, 1].

    Returns:
        The difference in levels of 255.
    """
    upsampled = F.interpolate(lq, image.shape[2:], mode="bicubic").clamp(0, 1)
    return 255 * float(low_frequencies(image - upsampled, COLOR_LEVELS).abs().mean())


@register("metric")
def calculate_color_error(img: np.ndarray, lq: np.ndarray, img2: np.ndarray | None = None) -> float:
    """`color_error` as a metric of the yml.

    Args:
        img: the result, (H, W, 3) uint8 BGR, as BasicSR passes it.
        lq: the image that was restored, (h, w, 3) uint8 BGR.
        img2: the GT, which does not matter here.
    """
    return color_error(_tensor(img), _tensor(lq))


def better(section: Mapping[str, Any]) -> str:
    """Which values are better, for the check of val.key_metric."""
    return "lower"


calculate_color_error.better = better  # type: ignore[attr-defined]  # mypy knows no attributes of functions


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()[None] / 255
