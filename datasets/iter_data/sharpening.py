"""Sharpening of the ground truth (Real-ESRGAN, arXiv:2107.10833, Sec. 3.2): BasicSR's USMSharp."""

import cv2
import torch
from basicsr.utils.img_process_util import usm_sharp
from torch import Tensor
from torch.nn import functional as F

_USM_RADIUS, _USM_WEIGHT, _USM_THRESHOLD = 51, 0.5, 10  # BasicSR's USMSharp


@torch.no_grad()
def sharpen(gt: Tensor) -> Tensor:
    """Unsharp masking as BasicSR's USMSharp (sigma 8, weight 0.5, threshold 10), at a fraction of its cost.

    Args:
        gt: (b, 3, H, W) float32 in [0, 1].

    Returns:
        The same shape, in [0, 1] but for rounding.

    Raises:
        ValueError: H or W is below 26.
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
