"""Colour correction (ITER, arXiv:2312.05616, Eq. 10)."""

import torch
from torch import Tensor


def match_color(image: Tensor, lq: Tensor) -> Tensor:
    """Give every channel of ``image`` the mean and standard deviation that it has in ``lq``.

    Args:
        image: (b, c, H, W) float, in [0, 1].
        lq: (b, c, h, w) float, in [0, 1], of any size: the input that ``image`` was restored from.

    Returns:
        (b, c, H, W) in [0, 1], of the dtype of ``image``.
    """
    return match_color_(image.to(torch.float32, copy=True), lq).to(image.dtype)


def match_color_(image: Tensor, lq: Tensor) -> Tensor:
    """`match_color` in the place of ``image``, which is float32: no second copy of a large one."""
    std, mean = torch.std_mean(image, dim=(2, 3), correction=0, keepdim=True)
    target_std, target_mean = torch.std_mean(lq.float(), dim=(2, 3), correction=0, keepdim=True)
    # A flat channel has nothing to stretch.
    return image.sub_(mean).mul_(target_std / std.clamp_min(1e-5)).add_(target_mean).clamp_(0, 1)
