"""Second-order degradation on tensors (Real-ESRGAN, arXiv:2107.10833, Fig. 2): GT -> LQ, a pure function.

The order of operations and the distribution of every parameter are those of BasicSR's RealESRGANModel.feed_data. What
is drawn once per batch there (resize factor and mode, kind of noise, second blur, order of JPEG and sinc) is drawn once
per batch here; sigma, noise scale, gray noise, and JPEG quality are drawn for each image. Workers call it with b = 1.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache

import cv2
import numpy as np
import torch
from basicsr.utils import DiffJPEG
from basicsr.utils.img_process_util import filter2D
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import rgb_to_grayscale

from iter_data.degradation import DEGRADATION_REGISTRY, MIN_GT_SIZE, Degradation
from iter_data.kernels import Kernels, draw_kernels
from iter_data.second_order_options import SecondOrderOptions

_RESIZE_MODES = ("area", "bilinear", "bicubic")


@DEGRADATION_REGISTRY.register()
class SecondOrderDegradation(SecondOrderOptions, Degradation):
    """The degradation where a section `degradation` has no `type`; its options are those of `SecondOrderOptions`."""

    def draw(self) -> dict[str, Tensor]:
        """The three kernels of a sample, (k, k) float32 each; see `draw_kernels`."""
        return draw_kernels(self)._asdict()

    def degrade(self, gt: Tensor, drawn: Mapping[str, Tensor], *, scale: int, generator: torch.Generator) -> Tensor:
        """gt (b, 3, H, W) -> LQ (b, 3, H/scale, W/scale); see the function `degrade`, which also says the errors."""
        kernels = Kernels(*(drawn[name] for name in Kernels._fields))
        return degrade(gt, kernels, scale=scale, options=self, generator=generator)


@torch.no_grad()
def degrade(
    gt: Tensor, kernels: Kernels, *, scale: int, options: SecondOrderOptions, generator: torch.Generator
) -> Tensor:
    """Make the LQ: blur, resize, add noise, and compress as JPEG, twice, with the final sinc filter.

    Args:
        gt: (b, 3, H, W) float32 RGB in [0, 1], H and W multiples of `scale` and >= 32, on any device.
        kernels: (b, k, k) each, on the device of gt.
        generator: a CPU generator; no global random state is read or changed. Noise on another device comes from a
            generator of that device seeded from it, so equal seeds give equal results on one device, not across
            devices.

    Returns:
        (b, 3, H/scale, W/scale) float32 in [0, 1], multiples of 1/255.

    Raises:
        ValueError: gt has another shape, size or dtype.

    Examples:
        >>> options = SecondOrderDegradation(jpeg_range=(60, 95))
        >>> with seeded_globals(0):
        ...     kernels = Kernels(*(kernel[None] for kernel in draw_kernels(options)))
        >>> generator = torch.Generator().manual_seed(0)
        >>> degrade(torch.rand(1, 3, 64, 64), kernels, scale=4, options=options, generator=generator).shape
        torch.Size([1, 3, 16, 16])
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
    out = _first_round(gt, kernels.kernel1, options, draw)
    out = _second_round(out, kernels.kernel2, (height / scale, width / scale), options, draw)
    out = _last_steps(out, kernels.sinc_kernel, (height // scale, width // scale), options, draw)
    return ((out * 255).round().clamp(0, 255) / 255).contiguous()


def _first_round(gt: Tensor, kernel: Tensor, options: SecondOrderOptions, draw: "_Draw") -> Tensor:
    out = _blur(gt, kernel)
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
    return _jpeg(out, draw.each(len(out), options.jpeg_range))


def _second_round(
    image: Tensor, kernel: Tensor, lq_size: tuple[float, float], options: SecondOrderOptions, draw: "_Draw"
) -> Tensor:
    """The second round without its JPEG compression, which `_last_steps` adds."""
    out = _blur(image, kernel) if draw.happens(options.second_blur_prob) else image
    factor = draw.resize_factor(options.resize_prob2, options.resize_range2)
    size = [max(1, int(side * factor)) for side in lq_size]
    out = F.interpolate(out, size=size, mode=draw.choice(_RESIZE_MODES))
    return _add_noise(
        out,
        draw,
        options.gaussian_noise_prob2,
        options.noise_range2,
        options.poisson_scale_range2,
        options.gray_noise_prob2,
    )


def _last_steps(
    image: Tensor, kernel: Tensor, size: tuple[int, int], options: SecondOrderOptions, draw: "_Draw"
) -> Tensor:
    """[resize back + sinc] and JPEG in either order; Real-ESRGAN found other orders to twist lines."""
    if draw.happens(0.5):
        out = F.interpolate(image, size=size, mode=draw.choice(_RESIZE_MODES))
        return _jpeg(_blur(out, kernel), draw.each(len(out), options.jpeg_range2))
    out = _jpeg(image, draw.each(len(image), options.jpeg_range2))
    return _blur(F.interpolate(out, size=size, mode=draw.choice(_RESIZE_MODES)), kernel)


class _Draw:
    """The random numbers of one call: decisions on the CPU (no device synchronization), noise on the device."""

    def __init__(self, generator: torch.Generator, device: torch.device):
        self.host = generator
        self.device = device
        self.noise = generator
        if device.type != "cpu":
            seed = int(torch.randint(2**63 - 1, (), generator=generator))
            self.noise = torch.Generator(device).manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.host, dtype=torch.float64).item()

    def happens(self, probability: float) -> bool:
        return self.uniform(0, 1) < probability

    def choice(self, options: tuple[str, ...]) -> str:
        return options[int(torch.randint(len(options), (), generator=self.host))]

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
    weights = kernel.numpy()
    middle = len(weights) // 2
    # most kernels are drawn smaller and padded with zeros
    reach = np.abs(np.argwhere(weights) - middle).max(initial=0)
    weights = np.ascontiguousarray(weights[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1])
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(cv2.filter2D(pixels, -1, weights, borderType=cv2.BORDER_REFLECT_101)).permute(2, 0, 1)


def _add_noise(
    image: Tensor,
    draw: _Draw,
    gaussian_prob: float,
    sigmas: tuple[float, float],
    poisson_scales: tuple[float, float],
    gray_prob: float,
) -> Tensor:
    """Gaussian or Poisson noise, in color or gray for each image; the result is clamped to [0, 1].

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
    """DiffJPEG of (b, 3, h, w) with one quality (b,) per image, without its loop over single device values."""
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
