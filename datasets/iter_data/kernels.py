"""Random blur and sinc kernels of the second-order degradation (Real-ESRGAN, arXiv:2107.10833, Sec. 3)."""

import math
import random
from typing import NamedTuple

import numpy as np
import torch
from basicsr.data.degradations import circular_lowpass_kernel, random_mixed_kernels
from torch import Tensor

from iter_data.second_order_options import SecondOrderOptions

SINC_KERNEL_SIZE = 21


class Kernels(NamedTuple):
    """The three kernels of a sample, (k, k), or of a batch, (b, k, k): float32, k odd, each with the sum 1."""

    kernel1: Tensor
    kernel2: Tensor
    sinc_kernel: Tensor


def draw_kernels(options: SecondOrderOptions) -> Kernels:
    """Draw the kernels of one sample from Python's and NumPy's global generators, in the order of RealESRGANDataset.

    Within `seeded_globals(seed)` the result is a function of the seed.

    Returns:
        kernel1 (k, k) with k = blur_kernel_size, kernel2 with k = blur_kernel_size2, and sinc_kernel (21, 21), which is
        a unit pulse where no final sinc filter was drawn.
    """
    kernel1 = _draw_blur(
        options.blur_kernel_size,
        options.kernel_list,
        options.kernel_prob,
        options.sinc_prob,
        options.blur_sigma,
        options.betag_range,
        options.betap_range,
    )
    kernel2 = _draw_blur(
        options.blur_kernel_size2,
        options.kernel_list2,
        options.kernel_prob2,
        options.sinc_prob2,
        options.blur_sigma2,
        options.betag_range2,
        options.betap_range2,
    )
    if np.random.uniform() < options.final_sinc_prob:
        size = _draw_size(SINC_KERNEL_SIZE)
        sinc = circular_lowpass_kernel(np.random.uniform(np.pi / 3, np.pi), size, pad_to=SINC_KERNEL_SIZE)
    else:
        sinc = np.zeros((SINC_KERNEL_SIZE, SINC_KERNEL_SIZE))
        sinc[SINC_KERNEL_SIZE // 2, SINC_KERNEL_SIZE // 2] = 1
    return Kernels(*(torch.from_numpy(kernel.astype(np.float32)) for kernel in (kernel1, kernel2, sinc)))


def _draw_size(largest: int) -> int:
    return random.choice(range(7, largest + 1, 2))


def _draw_blur(
    largest: int,
    kinds: tuple[str, ...],
    weights: tuple[float, ...],
    sinc_prob: float,
    sigma: tuple[float, float],
    betag: tuple[float, float],
    betap: tuple[float, float],
) -> np.ndarray:
    size = _draw_size(largest)
    if np.random.uniform() < sinc_prob:
        # a small kernel cannot hold the ringing of a low cut-off
        cutoff = np.random.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi)
        kernel = circular_lowpass_kernel(cutoff, size, pad_to=False)
    else:
        kernel = random_mixed_kernels(kinds, weights, size, sigma, sigma, [-math.pi, math.pi], betag, betap)
    return np.pad(kernel, (largest - size) // 2)
