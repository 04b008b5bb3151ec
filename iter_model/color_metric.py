"""The color error: how far areas are from the color and brightness of the photo, which NIQE does not notice."""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat import register
from iter_arch.color import low_frequencies
from iter_model.pyiqa_metric import rgb_tensor

# About what the eye sees as the color of an area.
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
def calculate_color_error(
    img: np.ndarray, lq: np.ndarray, img2: np.ndarray | None = None, crop_border: int = 0, better: str = "lower"
) -> float:
    """`color_error` as a metric of the yml.

    Args:
        img: the result, (H, W, 3) uint8 BGR, as BasicSR passes it.
        lq: the LQ image, (h, w, 3) uint8 BGR.
        img2, crop_border, better: what BasicSR passes to all metrics; they change nothing here.
    """
    return color_error(rgb_tensor(img), rgb_tensor(lq))


# For the check of val.key_metric.
calculate_color_error.better = lambda section: "lower"  # type: ignore[attr-defined]  # mypy knows no such attributes
