"""Adapter that lets a yml name any metric of pyiqa: ``type: pyiqa, metric: niqe|pi|lpips|psnr|ssim|musiq|...``"""

import functools
import os
from typing import Any

import numpy as np
import torch
from basicsr.utils.registry import METRIC_REGISTRY

from basicsr_compat.files import read_checkpoint


def create_metric(metric: str, *, device: str | None = None, as_loss: bool = False, **options: Any) -> torch.nn.Module:
    """Build a metric of pyiqa.

    Args:
        metric: pyiqa's name; `pyiqa.list_models()` lists them.
        options: further arguments; ``pretrained_model_path`` names weights on disk.

    Raises:
        ValueError: unknown name, a file that holds more than weights, or weights that are neither on disk nor to be
            downloaded, with where to put them.
    """
    if os.path.isfile(options.get("pretrained_model_path") or ""):
        read_checkpoint(options["pretrained_model_path"])  # refuses code, which pyiqa's loader may run
    import pyiqa  # slow to import, and pulls half of Hugging Face

    if metric not in pyiqa.list_models():
        raise ValueError(
            f"metric={metric!r} is not a metric of pyiqa; `python -c 'import pyiqa; print(pyiqa.list_models())'`"
        )
    try:
        return pyiqa.create_metric(metric, device=device, as_loss=as_loss, **options)
    except Exception as error:
        raise ValueError(
            f"metric={metric!r} of pyiqa cannot be built ({type(error).__name__}: {error}). If its weights cannot be "
            "downloaded here, download them elsewhere and either copy them to ~/.cache/torch/hub/pyiqa/ or name the "
            f"file in the yml: {{type: pyiqa, metric: {metric}, pretrained_model_path: FILE}}"
        ) from error


@functools.cache
def _build(metric: str, device: str, options: tuple[tuple[str, Any], ...]) -> torch.nn.Module:
    return create_metric(metric, device=device, **dict(options))


def build_metric(
    metric: str, *, device: str = "cpu", crop_border: int = 0, better: str = "", **options: Any
) -> torch.nn.Module:
    """The metric of a yml's section, built once; what is not an option of pyiqa is left out."""
    return _build(metric, device, tuple(sorted(options.items())))


@METRIC_REGISTRY.register()
def pyiqa(
    img: np.ndarray,
    metric: str,
    img2: np.ndarray | None = None,
    crop_border: int = 0,
    device: str = "cpu",
    **options: Any,
) -> float:
    """One metric of pyiqa on one image.

    Args:
        img, img2: (H, W, 3) uint8 BGR, as BasicSR hands them over; img2 is the GT.
        metric: pyiqa's name. Without img2, a full-reference metric is NaN.
        crop_border: pixels cut from every side.
        options: further arguments of the metric; BasicSR's own key ``better`` is ignored.

    Returns:
        The score; NaN where the image has none (too small, flat, or no GT).
    """
    net = build_metric(metric, device=device, **options)

    def tensor(image: np.ndarray) -> torch.Tensor:
        height, width = image.shape[:2]
        rgb = image[crop_border : height - crop_border, crop_border : width - crop_border, ::-1]
        return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float()[None] / 255

    if net.metric_mode == "FR" and img2 is None:
        return float("nan")
    with torch.no_grad():
        try:
            return float(net(tensor(img), tensor(img2)) if net.metric_mode == "FR" else net(tensor(img)))
        except (AssertionError, RuntimeError):
            return float("nan")
