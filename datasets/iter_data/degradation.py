"""Second-order degradation on tensors (Real-ESRGAN, arXiv:2107.10833, Fig. 2): GT -> LQ, a pure function.

The order of operations and the distribution of every parameter are those of BasicSR's RealESRGANModel.feed_data. What
is drawn once a batch there (resize factor and mode, kind of noise, second blur, order of JPEG and sinc) is drawn once
a batch here; sigma, noise scale, gray noise and JPEG quality are drawn for each image. Workers call it with b = 1.
"""

from copy import deepcopy
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D, usm_sharp
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale

from iter_data.kernels import Kernels
from iter_data.options import MIN_GT_SIZE, DegradationOptions

_RESIZE_MODES = ("area", "bilinear", "bicubic")
_USM_RADIUS, _USM_WEIGHT, _USM_THRESHOLD = 51, 0.5, 10  # BasicSR's USMSharp


class Pair(NamedTuple):
    """lq: (b, 3, H/s, W/s), gt: (b, 3, H, W), both float32 RGB in [0, 1]; lq is a multiple of 1/255."""

    lq: Tensor
    gt: Tensor


def make_pair(
    gt: Tensor,
    kernels: Kernels,
    *,
    scale: int,
    options: DegradationOptions,
    generator: torch.Generator,
    crop_size: int | None = None,
) -> Pair:
    """Sharpen the GT if `options.gt_usm` says so, degrade it, and cut the pair to `crop_size` at a random place.

    crop_size: side of the GT afterwards, a multiple of `scale`; None leaves the pair whole. The place is the same for
    the whole batch, as in BasicSR. Other arguments, and errors, as in `degrade`.
    """
    if options.gt_usm:
        gt = sharpen(gt)
    lq = degrade(gt, kernels, scale=scale, options=options, generator=generator)
    if crop_size is None:
        return Pair(lq, gt)
    side = crop_size // scale
    top, left = (torch.randint(length - side + 1, (), generator=generator).item() for length in lq.shape[-2:])
    rows, columns = slice(top * scale, (top + side) * scale), slice(left * scale, (left + side) * scale)
    return Pair(lq[..., top : top + side, left : left + side].contiguous(), gt[..., rows, columns].contiguous())


@torch.no_grad()
def degrade(
    gt: Tensor, kernels: Kernels, *, scale: int, options: DegradationOptions, generator: torch.Generator
) -> Tensor:
    """Blur, resize, noise and JPEG twice, with the final sinc filter.

    gt: (b, 3, H, W) float32 RGB in [0, 1], H and W multiples of `scale` and >= 32, on any device.
    kernels: (b, k, k) each, on the device of gt. generator: a CPU generator; no global random state is read or
    changed. Noise on another device comes from a generator of that device seeded from it, so equal seeds give equal
    results on one device, not across devices.
    Returns (b, 3, H/scale, W/scale) float32 in [0, 1], multiples of 1/255. Raises ValueError for another shape.
    """
    height, width = gt.shape[-2:]
    if gt.ndim != 4 or gt.shape[1] != 3 or gt.dtype != torch.float32:
        raise ValueError(f"gt of shape {tuple(gt.shape)} and {gt.dtype} must be (b, 3, H, W) torch.float32")
    if min(height, width) < MIN_GT_SIZE or height % scale or width % scale:
        raise ValueError(
            f"gt of {height}x{width} pixels must have sides >= {MIN_GT_SIZE} that are multiples of "
            f"scale={scale}: crop it first"
        )
    draw = _Draw(generator, gt.device)

    # ------------------------------- first round ------------------------------- #
    out = _blur(gt, kernels.kernel1)
    factor = draw.resize_factor(options.resize_prob, options.resize_range)
    out = F.interpolate(out, scale_factor=factor, mode=draw.choice(_RESIZE_MODES))
    out = _add_noise(
        out,
        draw,
        options.gaussian_noise_prob,
        options.noise_range,
        options.poisson_scale_range,
        options.gray_noise_prob,
    )
    out = _jpeg(out, draw.each(len(out), options.jpeg_range))

    # ------------------------------- second round ------------------------------- #
    if draw.happens(options.second_blur_prob):
        out = _blur(out, kernels.kernel2)
    factor = draw.resize_factor(options.resize_prob2, options.resize_range2)
    size = [max(1, int(side / scale * factor)) for side in (height, width)]
    out = F.interpolate(out, size=size, mode=draw.choice(_RESIZE_MODES))
    out = _add_noise(
        out,
        draw,
        options.gaussian_noise_prob2,
        options.noise_range2,
        options.poisson_scale_range2,
        options.gray_noise_prob2,
    )

    # [resize back + sinc] and JPEG in either order; Real-ESRGAN found other orders to twist lines
    lq_size = (height // scale, width // scale)
    if draw.happens(0.5):
        out = F.interpolate(out, size=lq_size, mode=draw.choice(_RESIZE_MODES))
        out = _blur(out, kernels.sinc_kernel)
        out = _jpeg(out, draw.each(len(out), options.jpeg_range2))
    else:
        out = _jpeg(out, draw.each(len(out), options.jpeg_range2))
        out = F.interpolate(out, size=lq_size, mode=draw.choice(_RESIZE_MODES))
        out = _blur(out, kernels.sinc_kernel)
    return ((out * 255).round().clamp(0, 255) / 255).contiguous()


@torch.no_grad()
def sharpen(gt: Tensor) -> Tensor:
    """Unsharp masking as BasicSR's USMSharp (sigma 8, weight 0.5, threshold 10), at a fraction of its cost.

    gt: (b, 3, H, W) float32 in [0, 1], H and W >= 26. Returns the same shape.
    """
    if min(gt.shape[-2:]) <= _USM_RADIUS // 2:
        raise ValueError(
            f"gt of {gt.shape[-2]}x{gt.shape[-1]} pixels is too small to sharpen: both sides must be > "
            f"{_USM_RADIUS // 2}; use larger images or gt_usm: false"
        )
    if gt.device.type == "cpu":
        # OpenCV's separable filter is several times faster here than two convolutions
        images = [usm_sharp(image.permute(1, 2, 0).contiguous().numpy()) for image in gt]
        return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).contiguous()
    return _sharpen_by_convolution(gt)


def _sharpen_by_convolution(gt: Tensor) -> Tensor:
    residual = gt - _gaussian_blur(gt)
    soft_mask = _gaussian_blur((residual.abs() * 255 > _USM_THRESHOLD).float())
    return gt + soft_mask * ((gt + _USM_WEIGHT * residual).clamp(0, 1) - gt)


def _gaussian_blur(image: Tensor) -> Tensor:
    # USMSharp's dense 51x51 kernel is the outer product of this one with itself
    line = torch.from_numpy(cv2.getGaussianKernel(_USM_RADIUS, 0)).to(image).reshape(1, 1, 1, -1)
    pad = _USM_RADIUS // 2
    planes = F.pad(image, (pad, pad, pad, pad), mode="reflect").flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.conv2d(planes, line), line.transpose(2, 3)).view(image.shape)


class _Draw:
    """The random numbers of one call: decisions on the CPU (no device synchronisation), noise on the device."""

    def __init__(self, generator: torch.Generator, device: torch.device):
        self.host = generator
        self.device = device
        self.noise = generator
        if device.type != "cpu":
            seed = torch.randint(2**63 - 1, (), generator=generator).item()
            self.noise = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.host, dtype=torch.float64).item()

    def happens(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def choice(self, options: tuple[str, ...]) -> str:
        return options[torch.randint(len(options), (), generator=self.host).item()]

    def resize_factor(self, weights: tuple[float, float, float], factors: tuple[float, float]) -> float:
        kind = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=self.host).item()
        if kind == 0:
            return self.uniform(1, factors[1])
        return self.uniform(factors[0], 1) if kind == 1 else 1.0

    def each(self, count: int, limits: tuple[float, float]) -> Tensor:
        """(count,) float32 on the device, uniform in [low, high)."""
        numbers = torch.rand(count, generator=self.host)
        return (limits[0] + (limits[1] - limits[0]) * numbers).to(self.device, non_blocking=True)


def _blur(image: Tensor, kernels: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    # reflection is undefined for an image not larger than the padding: a small crop after a strong downscale
    missing = kernels.shape[-1] // 2 + 1 - min(height, width)
    if missing > 0:
        image = F.pad(image, (0, missing, 0, missing), mode="replicate")
    if image.device.type == "cpu":
        # OpenCV's filter takes a tenth of the time of a convolution here
        images = [_blur_in_opencv(*both) for both in zip(image, kernels, strict=True)]
        return torch.stack(images)[..., :height, :width].contiguous()
    return filter2D(image, kernels)[..., :height, :width]


def _blur_in_opencv(image: Tensor, kernel: Tensor) -> Tensor:
    kernel = kernel.numpy()
    middle = len(kernel) // 2
    # most kernels are drawn smaller and padded with zeros
    reach = np.abs(np.argwhere(kernel) - middle).max(initial=0)
    kernel = np.ascontiguousarray(kernel[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1])
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(cv2.filter2D(pixels, -1, kernel, borderType=cv2.BORDER_REFLECT_101)).permute(2, 0, 1)


def _add_noise(
    image: Tensor,
    draw: _Draw,
    gaussian_prob: float,
    sigmas: tuple[float, float],
    poisson_scales: tuple[float, float],
    gray_prob: float,
) -> Tensor:
    """Gaussian or Poisson noise, in colour or gray for each image; the result is clamped to [0, 1].

    The noise of basicsr.data.degradations (random_add_gaussian_noise_pt, random_add_poisson_noise_pt), drawn from a
    generator instead of the global state.
    """
    gaussian = draw.happens(gaussian_prob)
    strength = draw.each(len(image), sigmas if gaussian else poisson_scales).view(-1, 1, 1, 1)
    gray = [draw.happens(gray_prob) for _ in image]
    noise_of = _gaussian_noise if gaussian else _poisson_noise
    noise = image.new_zeros(())
    if not all(gray):
        noise = noise_of(image, draw)
    if any(gray):
        is_gray = torch.tensor(gray).view(-1, 1, 1, 1).to(image.device, non_blocking=True)
        noise = torch.where(is_gray, noise_of(rgb_to_grayscale(image), draw), noise)
    return (image + noise * strength).clamp(0, 1)


def _gaussian_noise(image: Tensor, draw: _Draw) -> Tensor:
    return torch.randn(image.shape, generator=draw.noise, device=image.device) / 255


def _poisson_noise(image: Tensor, draw: _Draw) -> Tensor:
    levels = (image * 255).round().clamp(0, 255)
    # photon counts grow with the number of distinct levels of each image, rounded up to a power of two
    used = image.new_zeros(len(image), 256).scatter_(1, levels.flatten(1).long(), 1)
    peak = torch.exp2(used.sum(1).log2().ceil()).view(-1, 1, 1, 1)
    clean = levels / 255
    return torch.poisson(clean * peak, generator=draw.noise) / peak - clean


def _jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """DiffJPEG of (b, 3, h, w) with one quality an image (b,), without its loop over single device values."""
    jpeg = _jpeg_module(image.device)
    height, width = image.shape[-2:]
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)
    # BasicSR pads to 16, two blocks of subsampled chroma, with zeros
    padded = F.pad(image.clamp(0, 1), (0, -width % 16, 0, -height % 16))
    planes = jpeg.compress(padded, factor=factor)
    return jpeg.decompress(*planes, *padded.shape[-2:], factor=factor)[..., :height, :width]


@lru_cache
def _jpeg_module(device: torch.device) -> DiffJPEG:
    # every DiffJPEG shares two module-level tables: moving one to a GPU would break those on the CPU
    return deepcopy(DiffJPEG(differentiable=False)).requires_grad_(False).to(device)
