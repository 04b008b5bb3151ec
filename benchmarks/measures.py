"""What the benchmarks measure on an image: metrics by name, sets of photos, tables.

psnr, ssim and niqe are BasicSR's, in RGB and without a border of `scale` pixels; vgg is the distance of `VGGLoss`;
color is the mean absolute difference between the low frequencies of result and upsampled LQ in levels of 255; detail is
the energy of the Laplacian relative to the ground truth's. Any other name is pyiqa's.
"""

import basicsr_compat  # noqa: F401, I001  (repairs BasicSR, before it is imported)

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from basicsr.metrics import calculate_niqe, calculate_psnr, calculate_ssim
from basicsr.utils import tensor2img
from torch import Tensor
from torch.nn import functional as F

from basicsr_compat.images import is_image, read_photo
from iter_data import SecondOrderDegradationDataset
from iter_model.color_metric import color_error
from iter_model.pyiqa_metric import build_metric, pyiqa
from iter_model.vgg_loss import VGGLoss

DIGITS = {"psnr": 2, "ssim": 3, "vgg": 3, "lpips": 3, "dists": 3, "maniqa": 3, "clipiqa": 3}


class Photo(NamedTuple):
    """name; lq (1, 3, h, w); gt (1, 3, H, W), None for real photos. RGB in [0, 1]."""

    name: str
    lq: Tensor
    gt: Tensor | None


class Measured(NamedTuple):
    """What a metric sees: image (1, 3, H, W) in [0, 1], the same as array (H, W, 3) uint8 BGR, its photo, and scale."""

    image: Tensor
    array: np.ndarray
    photo: Photo
    scale: int

    @property
    def pair(self) -> dict[str, object]:
        """Arguments of BasicSR's metrics with a ground truth."""
        return {"img": self.array, "img2": tensor2img([self.photo.gt]), "crop_border": self.scale}


Metric = Callable[[Measured], float]


def upsample(photo: Photo, scale: int) -> Tensor:
    """Bicubic interpolation of the LQ, (1, 3, H, W) in [0, 1]."""
    return F.interpolate(photo.lq, scale_factor=scale, mode="bicubic").clamp(0, 1)


def shrink(gt: Tensor, scale: int) -> Tensor:
    """(b, 3, H, W) -> (b, 3, H/s, W/s), bicubic as in Pillow."""
    return F.interpolate(gt, scale_factor=1 / scale, mode="bicubic", antialias=True).clamp(0, 1)


def degraded(folder: str, scale: int, seed: int) -> list[Photo]:
    """The photos of a folder with their degraded versions, the same ones for the same seed."""
    options = {"name": "quality", "phase": "test", "dataroot_gt": folder, "scale": scale, "seed": seed}
    data = SecondOrderDegradationDataset({"type": "SecondOrderDegradationDataset", **options})
    return [Photo(Path(d["gt_path"]).stem, d["lq"][None], d["gt"][None]) for d in (data[i] for i in range(len(data)))]


def real(folder: str) -> list[Photo]:
    """The photos of a folder, unchanged."""
    paths = sorted(path for path in Path(folder).iterdir() if is_image(path))
    images = [read_photo(path).rgb for path in paths]
    tensors = [torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None] for image in images]
    return [Photo(path.stem, tensor, None) for path, tensor in zip(paths, tensors, strict=True)]


def laplacian_energy(image: Tensor) -> float:
    """Mean square of the Laplacian of image (1, 3, H, W)."""
    kernel = image.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return float(F.conv2d(image.mean(1, keepdim=True), kernel).square().mean())


def niqe(measured: Measured) -> float:
    """NaN for images that are flat or too small for its patches."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of means over flat patches, which it leaves out
            return float(calculate_niqe(measured.array, crop_border=measured.scale))
    except (np.linalg.LinAlgError, ValueError, IndexError):
        return float("nan")


WITHOUT_GT: dict[str, Metric] = {
    "niqe": niqe,
    "color": lambda measured: color_error(measured.image, measured.photo.lq),
}
WITH_GT: dict[str, Metric] = {
    "psnr": lambda measured: calculate_psnr(**measured.pair),
    "ssim": lambda measured: calculate_ssim(**measured.pair),
    "detail": lambda measured: laplacian_energy(measured.image) / laplacian_energy(measured.photo.gt),
}


def with_gt(metric: Metric) -> Metric:
    """NaN where the photo has no ground truth."""
    return lambda measured: float("nan") if measured.photo.gt is None else float(metric(measured))


def make_metric(name: str, *, vgg: str | None = None) -> Metric:
    """A metric by name.

    Args:
        name: of `WITHOUT_GT`, of `WITH_GT`, vgg, or pyiqa's.
        vgg: file with the features of VGG16; None: torchvision's.

    Raises:
        ValueError: pyiqa knows no such metric, or its weights cannot be had.
    """
    if name in WITHOUT_GT:
        return WITHOUT_GT[name]
    if name in WITH_GT:
        return with_gt(WITH_GT[name])
    if name == "vgg":
        loss = VGGLoss(path=vgg)
        return with_gt(lambda measured: loss(measured.image, measured.photo.gt))
    build_metric(name)

    def metric(measured: Measured) -> float:
        gt = {} if measured.photo.gt is None else {"img2": tensor2img([measured.photo.gt])}
        return pyiqa(measured.array, name, crop_border=measured.scale, **gt)

    return metric


class ImageMetrics:
    """Measures images by several metrics; NaN where one has no value."""

    def __init__(self, scale: int, metrics: Mapping[str, Metric]) -> None:
        self.scale, self.metrics = scale, metrics

    def measure(self, image: Tensor, photo: Photo) -> dict[str, float]:
        """image (1, 3, H, W) in [0, 1], restored from the photo -> its scores by name."""
        measured = Measured(image, tensor2img([image]), photo, self.scale)
        return {name: float(metric(measured)) for name, metric in self.metrics.items()}


def mean(scores: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over images; NIQE has no value for flat ones, which are left out."""
    scores = list(scores)
    columns = {name: np.array([one[name] for one in scores]) for name in scores[0]}
    return {
        name: float(np.nanmean(column)) if np.isfinite(column).any() else np.nan for name, column in columns.items()
    }


def cell(name: str, value: float) -> str:
    """A score as a table shows it; nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.{DIGITS.get(name, 2)}f}"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
