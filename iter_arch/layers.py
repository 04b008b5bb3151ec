"""Convolution blocks shared by the VQGAN and the LQ encoder (ITER, arXiv:2312.05616; VQGAN, arXiv:2012.09841)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with VQGAN's 32 groups of at least four channels each.

    Fewer groups below 128 channels: a group of one channel would be instance norm, which erases a channel's mean.
    """
    return nn.GroupNorm(max(1, min(32, channels // 4)), channels, eps=1e-6)


def init_convs(network: nn.Module) -> None:
    """Initialize to a nearly linear path: convs outside ResBlocks keep the variance, and every ResBlock adds zeros.

    With PyTorch's default, every conv leaves a third of the variance. After the levels of a VQGAN, little is left of an
    image's colors, and learning them takes thousands of iterations.
    """
    blocks = [module for module in network.modules() if isinstance(module, ResBlock)]
    last = {block.conv2 for block in blocks}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.normal_(module.weight, std=0.0 if module in last else fan_in**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ResBlock(nn.Module):
    """norm - activation - conv3x3, twice, plus the input: (b, c_in, h, w) -> (b, c_out, h, w).

    Args:
        activation: (x, inplace=) -> x; SiLU in the VQGAN, LeakyReLU(0.2) in the LQ encoder.
    """

    def __init__(self, in_channels: int, out_channels: int, *, activation: Callable[..., Tensor] = F.silu) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(b, in_channels, h, w) -> (b, out_channels, h, w)."""
        y = self.conv1(self._activated(self.norm1(x)))
        y = self.conv2(self._activated(self.norm2(y)))
        return self.shortcut(x) + y if torch.is_grad_enabled() else y.add_(self.shortcut(x))

    def _activated(self, x: Tensor) -> Tensor:
        """The activation, in place where no gradient will need the input: a pass over large maps less."""
        return self.activation(x, inplace=not torch.is_grad_enabled())


class Downsample(nn.Module):
    """Stride-2 conv3x3 after padding right and bottom by one: (b, c, h, w) -> (b, c, h/2, w/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest x2 and conv3x3: (b, c, h, w) -> (b, c, 2h, 2w).

    Computed as one transposed conv: weights that see the same input pixel are added first, which leaves four of nine.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c, 2h, 2w)."""
        weight = F.pad(self.conv.weight, (1, 1, 1, 1))
        weight = weight[..., 1:, :] + weight[..., :-1, :]
        weight = weight[..., 1:] + weight[..., :-1]
        return F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), self.conv.bias, stride=2, padding=1)
