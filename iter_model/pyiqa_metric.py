"""Adapter that lets a yml name any metric of pyiqa: ``type: pyiqa, metric: niqe|pi|lpips|psnr|ssim|musiq|...``"""

import contextlib
import functools
import importlib.util
import json
import os
import pickle
import re
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from basicsr_compat import register

# PyTorch's messages for images that are too small for a metric; pyiqa itself asserts.
_TOO_SMALL = re.compile(
    "too small|greater than actual input size|Padding size should be less|invalid shape dimension|"
    "only one dimension can be inferred|maximum size for tensor"
)


def create_metric(metric: str, *, device: str | None = None, as_loss: bool = False, **options: Any) -> torch.nn.Module:
    """Build a metric of pyiqa; nothing in the files of its weights is executed, those in caches included.

    Args:
        metric: pyiqa's name; `pyiqa.list_models()` lists them.
        device: where to build it; None: pyiqa's choice.
        as_loss: whether it has gradients.
        options: further arguments; ``pretrained_model_path`` names weights on disk.

    Raises:
        ValueError: the name is unknown, a file holds more than weights, or weights are neither on disk nor can they be
            downloaded; the message says where to put them.
    """
    import pyiqa  # slow to import, and pulls half of Hugging Face

    if metric not in pyiqa.list_models():
        raise ValueError(
            f"metric={metric!r} is not a metric of pyiqa; `python -c 'import pyiqa; print(pyiqa.list_models())'`"
        )
    try:
        with _weights_only():
            return pyiqa.create_metric(metric, device=device, as_loss=as_loss, **options)
    except pickle.UnpicklingError as error:
        files = options.get("pretrained_model_path") or "its files below ~/.cache/torch/hub/"
        raise ValueError(
            f"metric={metric!r} of pyiqa is not built: of {files} one is damaged or holds more than weights "
            f"({str(error).partition(chr(10))[0]}); delete it"
        ) from error
    except Exception as error:
        raise ValueError(
            f"metric={metric!r} of pyiqa cannot be built ({type(error).__name__}: {error}). Where its weights cannot "
            "be downloaded, build it once on a machine that has a network, and copy that machine's ~/.cache/torch/hub/ "
            "and ~/.cache/huggingface/ here. pretrained_model_path: FILE replaces pyiqa's own weights alone, which is "
            "enough for musiq; nima, topiq_nr, lpips and others load a backbone besides"
        ) from error


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Make torch.load execute nothing within this block, although pyiqa calls it with weights_only=False."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@functools.cache
def _build(metric: str, device: str, options: str) -> torch.nn.Module:
    return create_metric(metric, device=device, **json.loads(options))


def build_metric(
    metric: str, *, device: str = "cpu", crop_border: int = 0, better: str = "", **options: Any
) -> torch.nn.Module:
    """The metric of a section of the yml, built once. crop_border, better: not options of pyiqa, and ignored.

    See `create_metric` for the other arguments and the errors.
    """
    return _build(metric, device, json.dumps(options, sort_keys=True))


def rgb_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 BGR, as BasicSR passes it to metrics -> (1, 3, H, W) RGB in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))).float()[None] / 255


@register("metric")
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
        img: (H, W, 3) uint8 BGR, as BasicSR passes it.
        metric: pyiqa's name.
        img2: the GT, like img. Without it, the score of a full-reference metric is NaN.
        crop_border: pixels cut from every side.
        device: where to compute.
        options: further arguments of the metric; BasicSR's own key ``better`` is ignored.

    Returns:
        The score; NaN where the image has none, because it is too small or flat, or has no GT.

    Raises:
        ValueError: see `create_metric`.
    """
    net = build_metric(metric, device=device, **options)

    def tensor(image: np.ndarray) -> torch.Tensor:
        height, width = image.shape[:2]
        return rgb_tensor(image[crop_border : height - crop_border, crop_border : width - crop_border])

    images = [img]
    if net.metric_mode == "FR":
        if img2 is None:
            return float("nan")
        images.append(img2)
    try:
        with torch.no_grad():
            return float(net(*map(tensor, images)))
    except (AssertionError, torch.linalg.LinAlgError):
        return float("nan")
    except RuntimeError as error:
        if _TOO_SMALL.search(str(error)):
            return float("nan")
        raise


def better(section: Mapping[str, Any]) -> str | None:
    """Which values of the metric of a section are better, 'higher' or 'lower'; None where pyiqa does not know it.

    Reads pyiqa's table without importing pyiqa, which takes seconds.
    """
    spec = importlib.util.find_spec("pyiqa")
    if spec is None or spec.origin is None:
        return None
    known = runpy.run_path(os.path.join(os.path.dirname(spec.origin), "default_model_configs.py"))["DEFAULT_CONFIGS"]
    found = known.get(section.get("metric"))
    return found and ("lower" if found.get("lower_better", False) else "higher")


# For the check of val.key_metric.
pyiqa.better = better  # type: ignore[attr-defined]  # mypy knows no attributes of functions
